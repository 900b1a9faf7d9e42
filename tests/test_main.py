"""The whole road of a user: train, resume, predict, score, on a few made-up images."""

import json
import shutil
import zipfile
from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY, SHARED, SMALL, run_script

import main
import score
import submit_test
import submit_val
from challenge import predictions
from decathlon import SOURCE, TARGETS, TASK_BY_NAME, TASKS
from engine import fit
from engine.checkpoints import Checkpoint
from engine.evaluation import predict
from engine.fit import Pace
from engine.records import TIMING_FIELDS
from engine.transfer import Workspace
from image_cache.orders import View
from image_cache.packed import DataFolders
from methods.cost import macs_per_image
from methods.registry import METHODS, build_method, choose_policy
from models.resnet26 import resnet26
from runtime.devices import Compute
from runtime.errors import SpotTuneError
from weights.mean_std import read_mean_std

OWN = REPOSITORY / "decathlon_mean_std.pickle"


def records(ckpdir, task):
    return [json.loads(line) for line in (ckpdir / task / "records.jsonl").read_text().splitlines()]


def without_timing(lines):
    return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in lines]


def weights(ckpdir, task):
    return Checkpoint.load(ckpdir / task / "checkpoint.safetensors").weights


def assert_same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def again(trained, ckpdir, *arguments):
    """The arguments of the finished run, with changes, into another folder."""
    source = trained.ckpdir / SOURCE.name / "checkpoint.safetensors"
    base = [*trained.arguments, "--ckpdir", str(ckpdir), "--pretrained", str(source)]
    main.main([*base, "--tasks", *arguments])


def test_every_task_leaves_checkpoint_arguments_environment_records_and_curves(trained):
    for task in TASKS:
        names = {path.name for path in (trained.ckpdir / task.name).iterdir()}
        files = ["arguments.json", "environment.json", "cost.json", "records.jsonl", "curves.png"]
        checkpoints = {"checkpoint.safetensors", "checkpoint.previous.safetensors", ".lock"}
        assert names == {*files, *checkpoints, *(["decisions.json"] if task in TARGETS else [])}
    assert (trained.ckpdir / "fine_tuned_share.png").stat().st_size > 10_000


@pytest.mark.parametrize("task", [task.name for task in TARGETS])
def test_a_record_a_line_tells_what_an_epoch_did(task, trained):
    lines = records(trained.ckpdir, task)
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert line["train_loss"] > 0
        assert line["val_loss"] > 0
        assert 0 <= line["train_accuracy"] <= 100
        assert 0 <= line["val_accuracy"] <= 100
        assert line["images_per_second"] > 0
        assert line["val_seen_in_training"] is False
        for split in ("train", "val"):
            assert len(line[f"{split}_fine_tuned_share"]) == 12
            assert all(0 <= share <= 1 for share in line[f"{split}_fine_tuned_share"])


def test_the_source_is_a_plain_network_without_decisions(trained):
    assert records(trained.ckpdir, SOURCE.name)[0]["val_fine_tuned_share"] == []
    assert not any("policy" in name for name in weights(trained.ckpdir, SOURCE.name))


def test_targets_start_from_the_source(trained):
    source, target = (weights(trained.ckpdir, task) for task in (SOURCE.name, "svhn"))
    for block in range(12):
        name = f"blocks.{block}.conv1.weight"
        kept = target[f"net.{name.replace('blocks', 'pairs').replace('conv1', 'kept.conv1')}"]
        assert torch.equal(kept, source[f"net.{name}"])


def test_cost_counts_parameters_and_compute_per_image(trained):
    found = json.loads((trained.ckpdir / "daimlerpedcls/cost.json").read_text())
    method = build_method("spottune", resnet26(2, 4), 4)
    assert found["image"] == [32, 16]
    assert found["parameters"] == sum(p.numel() for p in method.parameters())
    frozen = sum(p.numel() for p in method.parameters() if not p.requires_grad)
    assert found["trained_parameters"] == found["parameters"] - frozen
    assert found["macs_per_image"] == macs_per_image(method.eval().evaluator(), 32, 16)
    source = json.loads((trained.ckpdir / SOURCE.name / "cost.json").read_text())
    assert source["macs_per_image"]["policy_network"] == 0


def test_global_ks_cost_is_of_the_blocks_that_it_learnt_to_fine_tune(trained, tmp_path):
    again(trained, tmp_path, "svhn", "--method", "globalk", "--k", "1", "--lr_agent", "1")
    (block,) = [i for i, s in enumerate(records(tmp_path, "svhn")[-1]["val_fine_tuned_share"]) if s]
    assert block > 0  # with the first one, the cost would be that of an untrained network
    compact = Checkpoint.load(tmp_path / "svhn/compact.safetensors")
    method = build_method("globalk", resnet26(2, 4), 4, compact.settings.options)
    method.share_L[block] = 1.0
    stored = [p for p in method.kept_for_predicting().parameters() if p.requires_grad]
    found = json.loads((tmp_path / "svhn/cost.json").read_text())
    assert found["stored_parameters"] == sum(p.numel() for p in stored)
    arguments = json.loads((tmp_path / "svhn/arguments.json").read_text())
    assert (arguments["method"], arguments["num_classes"]) == ("globalk", 2)


def test_environment_names_versions_threads_and_commit(trained):
    found = json.loads((trained.ckpdir / "svhn/environment.json").read_text())
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert found["threads"] == 1
    assert {"commit", "device", "precision", "python"} <= found.keys()


def test_a_task_alone_gives_the_same_bits_as_after_eight_others(trained, tmp_path):
    again(trained, tmp_path, "vgg-flowers")
    ours, theirs = records(tmp_path, "vgg-flowers"), records(trained.ckpdir, "vgg-flowers")
    assert_same_weights(weights(tmp_path, "vgg-flowers"), weights(trained.ckpdir, "vgg-flowers"))
    assert without_timing(ours) == without_timing(theirs)


def test_another_seed_gives_another_result(trained, tmp_path):
    again(trained, tmp_path, "dtd", "--seed", "1")
    assert (
        records(tmp_path, "dtd")[0]["train_loss"] != records(trained.ckpdir, "dtd")[0]["train_loss"]
    )


def test_stopped_and_started_again_it_goes_on_after_the_last_finished_epoch(
    trained, tmp_path, capsys
):
    again(trained, tmp_path, "svhn", "--nb_epochs", "1")
    assert len(records(tmp_path, "svhn")) == 1
    again(trained, tmp_path, "svhn")
    assert "1 of 2 epochs were finished before" in capsys.readouterr().out
    assert_same_weights(weights(tmp_path, "svhn"), weights(trained.ckpdir, "svhn"))
    ours, theirs = records(tmp_path, "svhn"), records(trained.ckpdir, "svhn")
    assert without_timing(ours) == without_timing(theirs)


def test_a_finished_run_started_again_changes_nothing(trained):
    before = {path: path.read_bytes() for path in trained.ckpdir.glob("*/checkpoint.safetensors")}
    before |= {path: path.read_bytes() for path in trained.ckpdir.glob("*/*.json")}
    main.main(trained.arguments)
    assert len(before) == 4 * len(TASKS) + len(TARGETS)  # decisions.json
    assert all(path.read_bytes() == content for path, content in before.items())


def test_weights_from_a_file_serve_tasks_with_other_settings(trained, tmp_path):
    again(trained, tmp_path, "svhn", "--nb_epochs", "1")
    again(trained, tmp_path, "dtd", "--nb_epochs", "1", "--lr", "0.2", "--step1", "7")
    assert records(tmp_path, "dtd")[0]["lr"] == 0.2


def test_the_runs_own_source_checkpoint_may_be_named_as_pretrained(trained):
    before = (trained.ckpdir / SOURCE.name / "checkpoint.safetensors").read_bytes()
    again(trained, trained.ckpdir, "svhn")
    assert (trained.ckpdir / SOURCE.name / "checkpoint.safetensors").read_bytes() == before


def test_weights_from_a_file_are_evaluated_once_where_imagenet12_is_a_task(trained, tmp_path):
    again(trained, tmp_path, SOURCE.name)
    (record,) = records(tmp_path, SOURCE.name)
    expected = records(trained.ckpdir, SOURCE.name)[-1]
    assert record["epoch"] == 0
    assert record["val_accuracy"] == expected["val_accuracy"]


def test_other_settings_do_not_go_on_from_a_checkpoint(trained):
    before = (trained.ckpdir / "svhn/checkpoint.safetensors").read_bytes()
    with pytest.raises(SpotTuneError, match="lr 0.1, but this run asks for 0.2"):
        main.main([*trained.arguments, "--tasks", "svhn", "--lr", "0.2"])
    assert (trained.ckpdir / "svhn/checkpoint.safetensors").read_bytes() == before


def test_a_run_that_has_epochs_left_keeps_its_test_policy(trained, tmp_path, capsys):
    """Else its records would be of two policies, and say of one only."""
    again(trained, tmp_path, "svhn", "--nb_epochs", "1")
    before = (tmp_path / "svhn/arguments.json").read_bytes()
    with pytest.raises(SpotTuneError, match="policy argmax, but this run asks for sample"):
        again(trained, tmp_path, "svhn", "--policy", "sample")
    assert (tmp_path / "svhn/arguments.json").read_bytes() == before
    again(trained, tmp_path, "svhn", "--nb_epochs", "1", "--policy", "sample")
    assert "its figures stay those of --policy argmax" in capsys.readouterr().out


def test_a_source_that_has_epochs_left_goes_on_for_targets_under_any_test_policy(trained, tmp_path):
    """It decides nothing, so nothing of it depends on how they decide."""
    base = [*trained.arguments, "--ckpdir", str(tmp_path), "--tasks", SOURCE.name]
    main.main([*base, "--source_epochs", "1", "--policy", "sample"])
    main.main([*base, "--method", "stochastic", "--policy", "kept"])
    assert (
        Checkpoint.load(tmp_path / SOURCE.name / "checkpoint.safetensors").settings.policy
        == "argmax"
    )
    assert_same_weights(weights(tmp_path, SOURCE.name), weights(trained.ckpdir, SOURCE.name))


@pytest.fixture
def optimizers(monkeypatch):
    """The parameter groups of the optimisers that runs make: network's and policy's, in turn."""
    made = []

    def sgd(parameters, **options):
        optimizer = torch_sgd(parameters, **options)
        made.append(optimizer.param_groups[0])
        return optimizer

    torch_sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", sgd)
    return made


def test_only_the_drop_at_step1_acts_by_default(trained, tmp_path, optimizers):
    """Read from the optimisers themselves, network's and policy's, after each epoch."""
    for epochs, rates in ((1, (0.1, 0.01)), (2, (0.01, 0.001)), (3, (0.01, 0.001))):
        again(trained, tmp_path, "svhn", "--step1", "1", "--nb_epochs", str(epochs))
        assert [group["lr"] for group in optimizers[-2:]] == pytest.approx(rates)
        line = records(tmp_path, "svhn")[-1]
        assert (line["lr"], line["lr_agent"]) == pytest.approx(rates)


@pytest.mark.parametrize(("task", "decay"), [("svhn", 0.0), ("ucf101", 5e-4), (SOURCE.name, 1e-4)])
def test_each_task_trains_with_its_own_weight_decay_and_normalisation(
    task, decay, trained, tmp_path, optimizers
):
    arguments = [*trained.arguments, "--ckpdir", str(tmp_path), "--tasks", task, SOURCE.name]
    main.main([*arguments, "--nb_epochs", "1", "--source_epochs", "1"])
    decays = [group["weight_decay"] for group in optimizers]
    assert decays == ([1e-4] if task == SOURCE.name else [1e-4, decay, 1e-3])
    settings = Checkpoint.load(tmp_path / task / "checkpoint.safetensors").settings
    assert (settings.mean, settings.std) == read_mean_std(OWN)[task]


def test_the_defaults_are_the_released_ones():
    args = main.parse_args([])
    assert (args.nb_epochs, args.batch_size, args.lr, args.lr_agent) == (110, 128, 0.1, 0.01)
    assert (args.step1, args.step2, args.step3) == (40, None, None)
    assert (args.source_epochs, args.source_steps) == (120, [80, 100])
    assert (args.resize, args.crop, args.width, args.seed) == (72, 64, 32, 0)
    assert (args.train_split, args.method, args.k) == ("trainval", "spottune", 3)
    policies = [choose_policy(row.policies, args.policy) for row in METHODS.values()]
    assert policies == ["argmax"] * 4 + ["sample"] + ["argmax"] * 3  # only stochastic draws


@pytest.mark.parametrize(
    ("splits", "view"), [(("train", "val"), View(16, 16, random=True)), (("val",), View(24, 24))]
)
def test_training_sees_random_crops_and_evaluation_the_centre(splits, view, trained, tmp_path):
    folders = DataFolders(trained.root, trained.root / "annotations", tmp_path)
    place = Workspace(folders, tmp_path, {}, Compute(torch.device("cpu"), "fp32"), Pace(1, 600.0))
    settings = Checkpoint.load(trained.ckpdir / "dtd/checkpoint.safetensors").settings
    data = place.data(TASK_BY_NAME["dtd"], splits, replace(settings, resize=24, crop=16))
    assert data.view == view


def test_the_test_policy_reaches_both_record_and_submission(trained, tmp_path):
    """Two runs that differ in nothing else give other decisions and other answers."""
    again(trained, tmp_path, "svhn", "--policy", "sample")
    drawn, likelier = (records(folder, "svhn")[-1] for folder in (tmp_path, trained.ckpdir))
    assert drawn["train_loss"] == likelier["train_loss"]
    assert drawn["val_fine_tuned_share"] != likelier["val_fine_tuned_share"]


def test_a_diverged_epoch_is_not_saved(trained, tmp_path):
    with pytest.raises(
        SpotTuneError, match=r"svhn epoch 1/2, step \d: the loss became nan.*Images: 8\d+, 8\d+"
    ):
        again(trained, tmp_path, "svhn", "--lr", "1e30")
    assert not (tmp_path / "svhn/checkpoint.safetensors").exists()


def test_trainval_learns_from_val_too_and_says_so(trained, tmp_path, capsys):
    again(trained, tmp_path, "svhn", "--train_split", "trainval", "--nb_epochs", "1")
    assert "seen in training" in capsys.readouterr().out
    assert records(tmp_path, "svhn")[0]["val_seen_in_training"] is True
    images, steps = 12 + 4, 2  # 2 classes of 6 and 2 images, in batches of 8
    batches = weights(tmp_path, "svhn")["net.stem.bn.num_batches_tracked"].item()
    source = weights(trained.ckpdir, SOURCE.name)["net.stem.bn.num_batches_tracked"].item()
    assert batches - source == steps
    rate = records(tmp_path, "svhn")[0]
    assert rate["images_per_second"] * rate["seconds"] == pytest.approx(images, rel=0.05)
    out = tmp_path / "results.json"
    arguments = ["--datadir", str(trained.root), "--ckpdir", str(tmp_path), "--out", str(out)]
    submit_val.main([*arguments, "--device", "cpu"])
    assert "svhn: 4 images; trained on train and val" in capsys.readouterr().out


def answers_of(script, trained, out, *arguments):
    script.main(
        ["--datadir", str(trained.root), "--ckpdir", str(trained.ckpdir), "--out", str(out)]
        + ["--device", "cpu", *arguments]
    )
    return json.loads(out.read_text())


def ids_of(root, suffix):
    """Image ids and category ids over all ten tasks, read straight from the JSON."""
    image_ids, category_ids = [], {}
    for task in TASKS:
        content = json.loads((root / "annotations" / f"{task.name}_{suffix}.json").read_text())
        image_ids += [image["id"] for image in content["images"]]
        category_ids[task.number] = {category["id"] for category in content["categories"]}
    return image_ids, category_ids


@pytest.mark.parametrize(
    ("script", "suffix"), [(submit_val, "val"), (submit_test, "test_stripped")]
)
def test_every_image_of_the_split_is_answered_exactly_once_in_integers(
    script, suffix, trained, tmp_path
):
    answers = answers_of(script, trained, tmp_path / "results.json")
    image_ids, category_ids = ids_of(trained.root, suffix)
    assert sorted(answer["image_id"] for answer in answers) == sorted(image_ids)
    for answer in answers:
        assert answer.keys() == {"image_id", "category_id"}
        assert all(type(value) is int for value in answer.values())
        assert answer["category_id"] in category_ids[answer["image_id"] // 10_000_000]


def test_the_scored_submission_is_the_accuracy_of_the_last_epoch(trained, tmp_path):
    answers_of(submit_val, trained, tmp_path / "results.json")
    report = tmp_path / "score.json"
    folder = str(trained.root / "annotations")
    arguments = ["--annotations", folder, "--split", "val", "--json", str(report)]
    score.main([str(tmp_path / "results.json"), *arguments])
    scored = json.loads(report.read_text())["tasks"]
    for task in TASKS:
        expected = records(trained.ckpdir, task.name)[-1]["val_accuracy"]
        assert scored[task.name]["accuracy"] == pytest.approx(expected), task.name


def test_sampled_answers_are_those_of_the_record(trained, tmp_path, monkeypatch):
    asked = []

    def observed(*arguments):
        asked.append(arguments[3:5])
        return predict(*arguments)

    monkeypatch.setattr(predictions, "predict", observed)
    monkeypatch.setattr(fit, "predict", observed)
    again(trained, tmp_path, "svhn", "dtd", "--policy", "sample")
    out = tmp_path / "results.json"
    flags = ["--datadir", str(trained.root), "--ckpdir", str(tmp_path), "--out", str(out)]
    submit_val.main([*flags, "--device", "cpu", "--policy", "sample", "--tasks", "svhn", "dtd"])
    seeds = {(0, "svhn", "val"), (0, "dtd", "val")}
    assert {seed for _, seed in asked} == seeds
    asked = [ask for ask in asked if ask[0] == "sample"]
    assert len(asked) == 2 * 2 + 2  # after each of two epochs, and in the submission
    labels = {}
    for task in ("svhn", "dtd"):
        content = json.loads((trained.root / f"annotations/{task}_val.json").read_text())
        labels |= {a["image_id"]: a["category_id"] for a in content["annotations"]}
    answers = json.loads(out.read_text())
    for number, task in ((8, "svhn"), (4, "dtd")):
        ours = [a for a in answers if a["image_id"] // 10**7 == number]
        right = [labels[a["image_id"]] == a["category_id"] for a in ours]
        expected = records(tmp_path, task)[-1]["val_accuracy"]
        assert 100 * sum(right) / len(right) == pytest.approx(expected)


def test_zip_packs_the_same_answers_for_the_server(trained, tmp_path):
    out = tmp_path / "results.json"
    answers_of(submit_test, trained, out, "--zip")
    with zipfile.ZipFile(tmp_path / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]
        assert archive.read("results.json") == out.read_bytes()


def test_a_missing_task_is_named_with_what_it_costs(trained, tmp_path, capsys):
    ckpdir = tmp_path / "checkpoints"
    shutil.copytree(trained.ckpdir, ckpdir, ignore=shutil.ignore_patterns("dtd"))
    out = tmp_path / "results.json"
    arguments = ["--datadir", str(trained.root), "--ckpdir", str(ckpdir), "--out", str(out)]
    submit_val.main([*arguments, "--device", "cpu"])
    said = capsys.readouterr().out
    assert "missing  dtd: no " in said
    assert "costs up to 1000 points" in said
    assert "answers for 9 of 10 tasks" in said


def test_without_data_one_line_names_both_ways_on(tmp_path):
    done = run_script("main.py", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "./download_data.sh ./data/" in line
    assert "make demo" in line


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real source weights (shared/) are not here")
def test_real_pretrained_weights_are_adopted_whole(tmp_path, trained):
    """The stand-in for the released file has 200 classes, the made-up imagenet12 other ones."""
    file = SHARED / "mini-decathlon/resnet26_tinyimagenet.t7"
    small = [flag for flag in SMALL if flag not in ("--width", "4")]
    arguments = ["--datadir", str(trained.root), "--ckpdir", str(tmp_path), *small]
    arguments += ["--pretrained", str(file), "--nb_epochs", "1"]
    with pytest.raises(SpotTuneError, match="knows 200 categories"):
        main.main(arguments)
    main.main([*arguments, "--tasks", "vgg-flowers"])
    assert len(weights(tmp_path, SOURCE.name)) == 25 + 26 * 5 + 2  # convolutions, BN, linear
    assert weights(tmp_path, SOURCE.name)["net.head.linear.weight"].shape == (200, 256)
