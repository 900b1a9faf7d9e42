"""A whole run: train, predict, submit, score, on a few made-up images."""

import json
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from conftest import REPOSITORY, answers_of, left, outcome, records
from networks import BLOCKS, WIDTH
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision import transforms

import main
import score
import submit_test
import submit_val
from decathlon import SOURCE, TARGETS, TASK_BY_NAME, TASKS
from engine.checkpoints import checkpoint_file
from methods.cost import macs_per_image
from methods.registry import METHODS, build_method, choose_policy
from methods.spottune import RoutedSpotTune, SpotTune
from models.resnet26 import Stem, resnet26
from weights.mean_std import read_mean_std

MEAN_STD = read_mean_std(REPOSITORY / "decathlon_mean_std.pickle")


def read(path):
    return json.loads(path.read_text())


def test_every_task_leaves_checkpoint_arguments_environment_records_and_curves(trained):
    for task in TASKS:
        names = {path.name for path in (trained.ckpdir / task.name).iterdir()}
        files = ["arguments.json", "environment.json", "cost.json", "curves.png"]
        files += ["records.jsonl", "records.csv"]
        checkpoints = {"checkpoint.safetensors", "checkpoint.previous.safetensors", ".lock"}
        assert names == {*files, *checkpoints, *(["decisions.json"] if task in TARGETS else [])}
    assert (trained.ckpdir / "fine_tuned_share.png").stat().st_size > 10_000


def test_a_record_a_line_tells_what_an_epoch_did(trained):
    for task in TARGETS:
        lines = records(trained.ckpdir, task.name)
        assert [line["epoch"] for line in lines] == [1, 2]
        for line in lines:
            assert min(line["train_loss"], line["val_loss"], line["images_per_second"]) > 0
            assert all(0 <= line[f"{split}_accuracy"] <= 100 for split in ("train", "val"))
            assert line["val_seen_in_training"] is False
            for split in ("train", "val"):
                assert len(line[f"{split}_fine_tuned_share"]) == BLOCKS
                assert all(0 <= share <= 1 for share in line[f"{split}_fine_tuned_share"])


def test_decisions_of_the_last_epoch_are_those_of_the_record(trained):
    rows = list(read(trained.ckpdir / "svhn/decisions.json")["decisions"].values())
    last = records(trained.ckpdir)[-1]
    shares = [sum(row[block] == "1" for row in rows) / len(rows) for block in range(BLOCKS)]
    assert shares == pytest.approx(last["val_fine_tuned_share"])
    counts = [sum(row.count("1") == number for row in rows) for number in range(BLOCKS + 1)]
    assert counts == last["val_blocks_per_image"]
    assert len(set(rows)) == last["val_distinct_policies"]
    answers = read(trained.ckpdir / "svhn/decisions.json")["answers"]
    truth = read(trained.root / "annotations/svhn_val.json")["annotations"]
    right = [answers[str(row["image_id"])] == row["category_id"] for row in truth]
    assert 100 * sum(right) / len(rows) == pytest.approx(last["val_accuracy"])
    assert last["val_policies"]["argmax"]["val_accuracy"] == last["val_accuracy"]
    assert last["val_policies"]["kept"]["val_fine_tuned_share"] == [0.0] * BLOCKS
    assert last["val_policies"]["finetuned"]["val_blocks_per_image"][BLOCKS] == len(rows)


def test_the_source_is_a_plain_network_without_decisions(trained):
    assert records(trained.ckpdir, SOURCE.name)[0]["val_fine_tuned_share"] == []
    assert not any("policy" in name for name in left(trained.ckpdir, SOURCE.name).weights)


def test_cost_counts_parameters_and_compute_per_image(trained):
    found = read(trained.ckpdir / "daimlerpedcls/cost.json")
    method = build_method("spottune", resnet26(2, WIDTH), WIDTH)
    assert found["image"] == [48, 24]
    assert found["parameters"] == sum(p.numel() for p in method.parameters())
    frozen = sum(p.numel() for p in method.parameters() if not p.requires_grad)
    assert found["trained_parameters"] == found["parameters"] - frozen
    assert found["macs_per_image"] == macs_per_image(method.eval().evaluator(), 48, 24)
    assert read(trained.ckpdir / "dtd/cost.json")["image"] == [24, 24]
    source = read(trained.ckpdir / SOURCE.name / "cost.json")
    assert source["macs_per_image"]["policy_network"] == 0


def test_environment_names_versions_threads_and_commit(trained):
    found = read(trained.ckpdir / "svhn/environment.json")
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert found["threads"] == 1
    assert {"commit", "device", "precision", "python"} <= found.keys()


def test_the_defaults_are_the_released_ones(trained):
    args = main.parse_args([])
    assert (args.nb_epochs, args.batch_size, args.lr, args.lr_agent) == (110, 128, 0.1, 0.01)
    assert (args.step1, args.step2, args.step3) == (40, None, None)
    assert left(trained.ckpdir).settings.milestones == (40,)  # one drop
    assert (args.source_epochs, args.source_steps) == (120, [80, 100])
    assert (args.resize, args.crop, args.width, args.seed) == (72, 64, 32, 0)
    assert (args.train_split, args.method, args.k) == ("trainval", "spottune", 3)
    policies = {name: choose_policy(row.policies, args.policy) for name, row in METHODS.items()}
    assert [name for name in policies if policies[name] != "argmax"] == ["stochastic"]
    assert policies["stochastic"] == "sample"


def test_a_task_alone_gives_the_same_bits_as_after_eight_others(trained, tmp_path):
    trained.again(tmp_path, "--tasks", "vgg-flowers")
    assert outcome(tmp_path, "vgg-flowers") == outcome(trained.ckpdir, "vgg-flowers")


def test_a_finished_run_started_again_changes_nothing(trained):
    files = [*(trained.ckpdir / "svhn").glob("*.*"), *trained.source.parent.glob("*.*")]
    before = {path: path.read_bytes() for path in files}
    main.main([*trained.arguments, "--tasks", SOURCE.name, "svhn"])
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_source_has_epochs_of_its_own_and_the_last_epoch_is_always_evaluated(trained, tmp_path):
    flags = ["--tasks", SOURCE.name, "svhn", "--pretrained", "none", "--source_epochs", "1"]
    trained.again(tmp_path, *flags, "--nb_epochs", "5", "--eval_every", "2")
    assert len(records(tmp_path, SOURCE.name)) == 1
    evaluated = [line["epoch"] for line in records(tmp_path) if line["val_accuracy"] is not None]
    assert evaluated == [2, 4, 5]


# What networks and optimisers are given.


@dataclass
class Seen:
    """What PyTorch's hooks saw of a run."""

    rates: dict = field(default_factory=dict)  # by optimiser and decay: learning rate of each step
    momenta: set = field(default_factory=set)
    images: set = field(default_factory=set)  # "train" or "test", height and width
    noise: dict = field(default_factory=lambda: {"train": [], "test": []})  # of each image, L x 2

    def unique_noise(self, mode):
        return torch.cat(self.noise[mode]).flatten(1).unique(dim=0)


@contextmanager
def watched():
    seen = Seen()

    def before_step(optimizer, args, kwargs):
        (group,) = optimizer.param_groups
        key = id(optimizer), group["weight_decay"]
        seen.rates.setdefault(key, []).append(group["lr"])
        seen.momenta.add(group["momentum"])

    def before_forward(module, inputs):
        if isinstance(module, Stem):
            seen.images.add(("train" if module.training else "test", *inputs[0].shape[2:]))
        if isinstance(module, SpotTune | RoutedSpotTune):
            seen.noise["train" if isinstance(module, SpotTune) else "test"].append(inputs[1])

    hooks = register_optimizer_step_pre_hook(before_step)
    more_hooks = register_module_forward_pre_hook(before_forward)
    yield seen
    hooks.remove()
    more_hooks.remove()


SAMPLED = {SOURCE.name: 24, "svhn": 12, "ucf101": 12}  # tasks and their images


@pytest.fixture(scope="module")
def sampled(trained, tmp_path_factory):
    """The folder of a run of three tasks with drawn decisions, and what was seen of each."""
    ckpdir, seen = tmp_path_factory.mktemp("sampled"), {}
    flags = ["--policy", "sample", "--lr", "0.1", "--step1", "1", "--source_steps", "2"]
    for task in SAMPLED:
        with watched() as seen[task]:
            main.main([*trained.arguments, "--ckpdir", str(ckpdir), *flags, "--tasks", task])
    return ckpdir, seen


@pytest.mark.parametrize(
    ("task", "optimizers"),
    [  # weight decay and learning rates of the two epochs: of the network, of the policy network
        (SOURCE.name, {1e-4: (0.1, 0.1)}),
        ("svhn", {0.0: (0.1, 0.01), 1e-3: (0.01, 0.001)}),
        ("ucf101", {5e-4: (0.1, 0.01), 1e-3: (0.01, 0.001)}),
    ],
)
def test_each_task_trains_with_its_own_decay_and_milestones(task, optimizers, sampled):
    """--step1 1 for the targets, --source_steps 2; read from the optimisers at each step."""
    ckpdir, seen = sampled
    steps = SAMPLED[task] // 4  # of an epoch
    rates = {decay: seen_rates for (_, decay), seen_rates in seen[task].rates.items()}
    assert rates.keys() == optimizers.keys()
    for decay, of_epochs in optimizers.items():
        assert rates[decay] == pytest.approx([rate for rate in of_epochs for _ in range(steps)])
    assert seen[task].momenta == {0.9}
    recorded = [(line["lr"], line["lr_agent"]) for line in records(ckpdir, task)]
    assert [lr for lr, _ in recorded] == pytest.approx(next(iter(optimizers.values())))
    settings = left(ckpdir, task).settings
    assert (settings.mean, settings.std) == MEAN_STD[task]


@pytest.mark.parametrize("task", SAMPLED)
def test_training_sees_random_crops_and_evaluation_and_submissions_the_whole(task, sampled):
    """--resize 24 --crop 16; svhn is cropped at its centre in training too."""
    _, seen = sampled
    side = 24 if task == "svhn" else 16
    assert seen[task].images == {("train", side, side), ("test", 24, 24)}


def test_every_image_has_noise_of_its_own_in_every_epoch_and_task(sampled):
    _, seen = sampled
    noise = torch.cat([seen[task].unique_noise("train") for task in ("svhn", "ucf101")])
    assert len(noise.unique(dim=0)) == 2 * (12 + 12)


def test_a_submission_draws_the_decisions_of_the_record(sampled, trained, tmp_path):
    ckpdir, seen = sampled
    for task in ("svhn", "ucf101"):
        flags = [tmp_path / "x", "--policy", "sample", "--tasks", task]
        with watched() as asked:
            answers = answers_of(submit_val, trained.root, ckpdir, *flags)
        drawn = {tuple(row.tolist()) for row in asked.unique_noise("test")}
        assert len(drawn) == 6
        assert drawn < {tuple(row.tolist()) for row in seen[task].unique_noise("test")}
        assert asked.images == {("test", 24, 24)}
        labels = read(trained.root / f"annotations/{task}_val.json")["annotations"]
        right = sum(answers[label["image_id"]] == label["category_id"] for label in labels)
        last = records(ckpdir, task)[-1]
        assert 100 * right / 6 == pytest.approx(last["val_accuracy"])
        shares = [last["val_policies"][how]["val_fine_tuned_share"] for how in ("sample", "argmax")]
        assert shares[0] == last["val_fine_tuned_share"] != shares[1]


def test_trainval_learns_from_val_too_and_says_so(trained, tmp_path, capsys):
    flags = ["--train_split", "trainval", "--nb_epochs", "1", "--precision", "auto"]
    with watched() as seen:
        trained.again(tmp_path, "--tasks", "dtd", *flags)
    assert "seen in training" in capsys.readouterr().out
    (record,) = records(tmp_path, "dtd")
    assert record["val_seen_in_training"] is True
    assert record["images_per_second"] * record["seconds"] == pytest.approx(12 + 6, rel=0.05)
    assert len(seen.unique_noise("train")) == 12 + 6
    assert seen.images == {("train", 16, 16), ("test", 24, 24)}
    answers_of(submit_val, trained.root, tmp_path, tmp_path / "results.json")
    said = capsys.readouterr().out
    assert "dtd: 6 images; trained on train and val" in said
    assert "missing  svhn: no " in said
    assert "costs up to 1000 points" in said
    assert "answers for 2 of 10 tasks" in said  # imagenet12's from the file


# Submissions.


@pytest.fixture(scope="module")
def submitted(trained, tmp_path_factory):
    """The answers to each split, and the folder of both files."""
    folder = tmp_path_factory.mktemp("submitted")
    where = trained.root, trained.ckpdir
    val = answers_of(submit_val, *where, folder / "val.json")
    test = answers_of(submit_test, *where, folder / "results.json", "--zip")
    return {"val": val, "test_stripped": test}, folder


@torch.no_grad()
def slow_answers(task, content, trained):
    """Image by image: torchvision's pixels through both branches of the checkpoint's network."""
    path = checkpoint_file(trained.ckpdir, task)
    method = left(trained.ckpdir, task).network(path).eval()
    steps = [transforms.Resize(24), transforms.ToTensor(), transforms.Normalize(*MEAN_STD[task])]
    if task != "daimlerpedcls":
        steps.insert(1, transforms.CenterCrop(24))
    pixels = transforms.Compose(steps)
    categories = sorted(category["id"] for category in content["categories"])
    for image in content["images"]:
        with Image.open(trained.root / image["file_name"]) as file:
            scores, _ = method(pixels(file.convert("RGB"))[None], torch.zeros(1, BLOCKS, 2))
        yield image["id"], categories[scores.argmax()]


@pytest.mark.parametrize("split", ["val", "test_stripped"])
def test_a_submission_answers_every_image_as_a_slow_form_does(split, submitted, trained):
    answers, expected = submitted[0][split], {}
    for task in TASK_BY_NAME:
        content = read(trained.root / f"annotations/{task}_{split}.json")
        expected |= slow_answers(task, content, trained)
    assert answers == expected
    assert len(set(answers.values())) > 15  # of 32 categories: the networks are no constants


def test_the_scored_submission_is_the_accuracy_of_the_last_epoch(submitted, trained, tmp_path):
    report = tmp_path / "score.json"
    arguments = ["--annotations", str(trained.root / "annotations"), "--split", "val"]
    score.main([str(submitted[1] / "val.json"), *arguments, "--json", str(report)])
    scored = read(report)["tasks"]
    for task in TASK_BY_NAME:
        expected = records(trained.ckpdir, task)[-1]["val_accuracy"]
        assert scored[task]["accuracy"] == pytest.approx(expected), task


def test_zip_packs_the_same_answers_for_the_server(submitted):
    with zipfile.ZipFile(submitted[1] / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]
        assert archive.read("results.json") == (submitted[1] / "results.json").read_bytes()
