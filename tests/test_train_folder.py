"""train_folder.py and predict.py: own pictures from class folders to answers, with any backbone."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import left, outcome, records, refusal, run_script, stop_at
from PIL import Image

import predict
import train_folder
from engine import fit
from engine.answers import VAL_ANSWERS
from engine.checkpoints import Checkpoint, best_file, checkpoint_file
from methods.registry import METHODS
from runtime.signals import Stopped

# timm's network for tests: four residual blocks, 0.5 million parameters.
SMALL = ["--backbone", "timm:test_resnet", "--weights", "none", "--resize", "36", "--crop", "32"]
SMALL += ["--policy_size", "16", "--width", "16", "--batch_size", "4", "--nb_epochs", "2"]
SMALL += ["--device", "cpu", "--precision", "fp32", "--lr", "0.02"]
BLOCKS = 4


def colour(path, label, seed):
    """A noisy picture, mostly of its class's colour, wider than high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    pixels = draws.integers(0, 120, (36, 44, 3), dtype=np.uint8)
    pixels[..., label] += 120
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def paints(tmp_path_factory):
    """Two tasks: "paints" of three classes with 4, 3 and 3 pictures, "inks" of two."""
    root = tmp_path_factory.mktemp("pictures")
    counts = {"paints": {"red": 4, "green": 3, "blue": 3}, "inks": {"red": 3, "green": 5}}
    seed = 0
    for task, classes in counts.items():
        for split, share in (("train", 1), ("val", 1)):
            for label, (name, count) in enumerate(classes.items()):
                for number in range(count * share):
                    seed += 1
                    colour(root / task / split / name / f"{number}.png", label, seed)
    for number in range(3):
        colour(root / "paints/test" / f"{number}.png", number, 100 + number)
    return root


def train(root, ckpdir, *changes, folders=("paints",)):
    named = [str(root / folder) for folder in folders]
    train_folder.main([*named, "--ckpdir", str(ckpdir), *SMALL, *map(str, changes)])


@pytest.fixture(scope="session")
def painted(paints, tmp_path_factory):
    """SpotTune on both tasks, for two epochs of three and two steps."""
    ckpdir = tmp_path_factory.mktemp("cv")
    train(paints, ckpdir, folders=("paints", "inks"))
    return ckpdir


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_leaves_what_a_run_of_the_decathlon_leaves_and_its_answers_on_val(painted):
    names = ("arguments.json", "environment.json", "cost.json", "records.jsonl", "curves.png")
    for name in (*names, VAL_ANSWERS):
        assert (painted / "paints" / name).stat().st_size
    checkpoint = left(painted, "paints")
    assert checkpoint.categories == ["blue", "green", "red"]
    assert checkpoint.settings.backbone == "timm:test_resnet"
    assert (painted / "fine_tuned_share.png").exists()
    assert len(records(painted, "paints")[-1]["val_fine_tuned_share"]) == BLOCKS


def test_the_answers_on_val_are_those_of_the_record(painted, paints):
    rows, last = rows_of(painted / "paints" / VAL_ANSWERS), records(painted, "paints")[-1]
    assert [row["file"] for row in rows][:3] == [
        "val/blue/0.png",
        "val/blue/1.png",
        "val/blue/2.png",
    ]
    assert all(row["class"] == row["file"].split("/")[1] for row in rows)
    right = [row["answer"] == row["class"] for row in rows]
    assert 100 * sum(right) / len(right) == pytest.approx(last["val_accuracy"])
    recalls = []
    for name in ("blue", "green", "red"):
        hits = [row["answer"] == name for row in rows if row["class"] == name]
        recalls.append(100 * sum(hits) / len(hits))
    assert last["val_class_recall"] == pytest.approx(recalls)
    assert last["val_balanced_accuracy"] == pytest.approx(sum(recalls) / 3)
    shares = [
        sum(row["fine_tuned_blocks"][block] == "1" for row in rows) for block in range(BLOCKS)
    ]
    assert [share / len(rows) for share in shares] == pytest.approx(last["val_fine_tuned_share"])
    for row in rows:
        assert row["second"] != row["answer"]
        assert 1 >= float(row["probability"]) >= float(row["second_probability"]) > 0


def test_of_two_classes_the_auc_is_recorded(painted):
    rows, last = rows_of(painted / "inks" / VAL_ANSWERS), records(painted, "inks")[-1]
    of_red = {name: [] for name in ("green", "red")}
    for row in rows:
        first = float(row["probability"])
        of_red[row["class"]].append(first if row["answer"] == "red" else 1 - first)
    wins = [(a > b) + (a == b) / 2 for a in of_red["red"] for b in of_red["green"]]
    assert last["val_auc"] == pytest.approx(sum(wins) / len(wins))
    assert "val_auc" not in records(painted, "paints")[-1]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_run_ends_with_the_same_bits(optimizer, paints, tmp_path, monkeypatch):
    changes = ["--optimizer", optimizer, "--grad_clip", "1", "--label_smoothing", "0.1"]
    changes += ["--warmup", "0.5", "--final_temperature", "1"]
    train(paints, tmp_path / "whole", *changes)
    for place in (1, 4, 3):  # inside the first epoch, in an evaluation, inside the second
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_at(patched, place)
            train(paints, tmp_path / "parts", *changes)
    train(paints, tmp_path / "parts", *changes)
    assert outcome(tmp_path / "parts", "paints") == outcome(tmp_path / "whole", "paints")
    answers = [(tmp_path / run / "paints" / VAL_ANSWERS).read_text() for run in ("parts", "whole")]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind != "spottune"])
def test_every_method_trains_on_a_folder(kind, paints, tmp_path):
    train(paints, tmp_path, "--method", kind, "--nb_epochs", "1", "--k", "2")
    (record,) = records(tmp_path, "paints")
    shares = {"stochastic": BLOCKS, "globalk": BLOCKS}.get(kind, 0)
    assert len(record["val_fine_tuned_share"]) == shares
    assert (tmp_path / "paints" / VAL_ANSWERS).exists()


def test_one_task_alone_gives_the_same_bits_as_side_by_side(painted, paints, tmp_path):
    done = run_script(
        "train_folder.py", paints / "paints", paints / "inks", "--ckpdir", tmp_path, *SMALL,
        "--jobs", "2", "--threads", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for task in ("paints", "inks"):
        assert outcome(tmp_path, task) == outcome(painted, task)


def test_the_best_epoch_is_kept_beside_the_last(paints, tmp_path, monkeypatch):
    accuracies = iter([40.0, 70.0, 50.0])
    summarise = fit.summarise

    def graded(predictions, images):
        return replace(summarise(predictions, images), accuracy=next(accuracies))

    monkeypatch.setattr(fit, "summarise", graded)
    changes = ["--keep", "best", "--nb_epochs", "3", "--method", "finetune"]
    train(paints, tmp_path, *changes)
    path = checkpoint_file(tmp_path, "paints")
    assert len(Checkpoint.load(best_file(path)).history) == 2
    assert len(Checkpoint.load(path).history) == 3
    out = tmp_path / "answers.csv"
    predict.main([str(path.parent), str(paints / "paints/test"), "--best", "--csv", str(out)])
    assert len(rows_of(out)) == 3


# --- predict.py ----------------------------------------------------------------------------------


def test_predictions_for_val_are_those_of_the_runs_last_epoch(painted, paints, tmp_path, capsys):
    out, drawn = tmp_path / "a/answers.csv", tmp_path / "drawn"
    told = ["--csv", out, "--json", tmp_path / "answers.json", "--draw", drawn, "--device", "cpu"]
    folder = paints / "paints"
    predict.main([str(each) for each in (painted / "paints", folder / "val", *told)])
    rows, of_run = rows_of(out), rows_of(painted / "paints" / VAL_ANSWERS)
    assert [row.pop("file") for row in rows] == [str(folder / row.pop("file")) for row in of_run]
    for row, other in zip(rows, of_run, strict=True):
        assert row.pop("class") == ""
        del other["class"]
        for name in ("probability", "second_probability"):
            assert float(row.pop(name)) == pytest.approx(float(other.pop(name)), abs=1e-5)
        assert row == other
    as_json = json.loads((tmp_path / "answers.json").read_text())
    assert [row["answer"] for row in as_json] == [row["answer"] for row in rows]
    pictures = sorted(drawn.iterdir())
    assert len(pictures) == len(rows)
    with Image.open(pictures[0]) as picture:
        assert picture.width == 360


def test_a_broken_picture_is_named_and_the_others_are_answered(painted, paints, tmp_path):
    shutil.copytree(paints / "paints/test", tmp_path / "test")
    (tmp_path / "test/1.png").write_bytes(b"no picture")
    out = tmp_path / "answers.csv"
    done = run_script("predict.py", painted / "paints", tmp_path / "test", "--csv", out)
    assert done.returncode == 1
    assert "test/1.png: cannot be decoded" in done.stderr
    assert "error: 1 of 3 pictures could not be read" in done.stderr
    assert [row["file"][-5:] for row in rows_of(out)] == ["0.png", "2.png"]


def test_what_cannot_be_predicted_is_refused_in_one_line(painted, paints, tmp_path):
    run, test = str(painted / "paints"), str(paints / "paints/test")
    assert "no such picture or folder" in refusal(predict.main, [run, str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    assert "no pictures in it" in refusal(predict.main, [run, str(tmp_path / "empty")])
    assert "no such checkpoint" in refusal(predict.main, [str(tmp_path / "none"), test])
    assert "train with --keep best" in refusal(predict.main, [run, test, "--best"])
    png = str(paints / "paints/test/0.png")
    assert "Name a run's folder" in refusal(predict.main, [png, test])
    told = refusal(predict.main, [run, test, "--csv", str(tmp_path)])
    assert "expected a file name" in told


# --- A careless user -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--crop", "64"], "--crop 64: larger than the pictures' shorter side, --resize 36"),
        (["--backbone", "timm:test_resnt"], "did you mean timm:test_resnet?"),
        (["--method", "lastk", "--k", "5"], "--k 5: expected at most 4"),
        (["--weights", "nowhere.pth"], "nowhere.pth: no such file; expected --weights"),
    ],
)
def test_a_wrong_setting_is_named(changes, words, paints, tmp_path):
    assert words in refusal(train, paints, tmp_path, *changes)
    assert not (tmp_path / "paints/checkpoint.safetensors").exists()


def test_a_bad_folder_is_named_before_any_other_is_trained(paints, tmp_path):
    (tmp_path / "bad/train/only").mkdir(parents=True)
    shutil.copytree(paints / "paints", tmp_path / "paints")
    told = refusal(lambda: train(tmp_path, tmp_path / "cv", folders=("paints", "bad")))
    assert "only the class only found" in told
    assert not (tmp_path / "cv/paints").exists()


def test_a_last_batch_of_which_nothing_is_left_for_batch_norm_is_told(paints, tmp_path):
    """A ResNet-18 halves 32 pixels five times: one value per channel and picture is left."""
    changes = ["--backbone", "resnet18", "--batch_size", "9", "--nb_epochs", "1"]
    told = refusal(train, paints, tmp_path, *changes)
    assert "a batch of 1 leaves BatchNorm a single value per channel" in told


def test_runs_do_not_lie_among_the_pictures(paints):
    folder = paints / "paints/train/cv"
    assert "where it would become a class" in refusal(train, paints, folder)
    assert not folder.exists()


def test_other_settings_do_not_continue_a_run(painted, paints):
    for changes, words in (
        (["--schedule", "step"], "schedule cosine, but this run asks for step"),
        (["--nb_epochs", "3"], "epochs 2, but this run asks for 3"),  # of a cosine
        (["--kept_norm", "frozen"], "kept_norm train, but this run asks for frozen"),
        (["--min_area", "0.5"], "min_area 0.08, but this run asks for 0.5"),
        (["--temperature", "2"], "temperature 5.0, but this run asks for 2.0"),
    ):
        assert words in refusal(train, paints, painted, *changes)


def test_pictures_that_changed_are_other_data(painted, paints, tmp_path):
    shutil.copytree(paints / "paints", tmp_path / "paints")
    shutil.copytree(painted, tmp_path / "cv")
    colour(tmp_path / "paints/train/red/new.png", 2, 500)
    told = refusal(train, tmp_path, tmp_path / "cv")
    assert "other images or labels" in told


def test_a_run_of_the_decathlon_predicts_too(trained, tmp_path):
    """Its classes are category ids; pixels are as main.py decodes them."""
    images = json.loads((trained.root / "annotations/svhn_val.json").read_text())["images"]
    files = {trained.root / image["file_name"]: image["id"] for image in images}
    out = tmp_path / "answers.csv"
    told = [trained.ckpdir / "svhn", *files, "--csv", out, "--device", "cpu"]
    predict.main([str(each) for each in told])
    recorded = json.loads((trained.ckpdir / "svhn/decisions.json").read_text())
    for row, image_id in zip(rows_of(out), files.values(), strict=True):
        assert row["answer"] == str(recorded["answers"][str(image_id)])
        assert row["fine_tuned_blocks"] == recorded["decisions"][str(image_id)]
