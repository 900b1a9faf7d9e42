"""A careless user: every mistake gets one line, a non-zero status, and loses nothing."""

import pickle
import shutil

import pytest
from conftest import answers_of, edit_json, left, refusal, run_script

import main
import submit_val
from methods.registry import METHODS


@pytest.fixture
def own_data(decathlon_root, tmp_path):
    """A private copy of two tasks' data, to be damaged."""
    root = tmp_path / "decathlon-1.0"
    for part in ("annotations", "data/svhn", "data/imagenet12"):
        shutil.copytree(decathlon_root / part, root / part)
    return root


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tasks", "mnist"], "no task is named 'mnist' (expected aircraft, "),
        (["--tasks", "DTD"], "did you mean dtd?"),
        (["--lr", "nan"], "--lr: nan given; expected a number above 0"),
        (["--nb_epochs", "0"], "--nb_epochs: 0 given"),
        (["--seed", "9" * 20], "64 bits"),
        (["--step1", "9" * 20], "--step1"),
        (["--width", "1025"], "--width: 1025 given; expected 1 to 1024 channels"),
        (["--k", "13"], "--k: 13 given; expected 0 to 12"),
        (["--k", "three"], "--k: three given; expected 0 to 12"),
        (["--ckpdir", ""], "an empty name given; expected a folder"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_in_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(flags)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_without_data_both_ways_on_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags in ([], ["--datadir", "nowhere"]):
        line = refusal(main.main, flags)
        assert "no such folder" in line
        assert "./download_data.sh ./data/" in line
        assert "make demo" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resize", "70"], "--resize 70: expected a multiple of 8"),
        (["--crop", "60"], "--crop 60: expected a multiple of 8"),
        (["--crop", "8"], "--crop 8: expected between 16 and"),
        (["--resize", "32", "--crop", "40"], "--crop 40: larger"),
        (["--device", "cuda:9"], "--device cuda:9: not available here"),
        (["--device", "quantum"], "--device quantum: not available here"),
        (["--device", "cuda:97", "--jobs", "2"], "--device cuda:97: not available here"),
        (["--mean_std", "nowhere.pickle"], "nowhere.pickle: no such file of means"),
        (["--pretrained", "nowhere.t7"], "nowhere.t7: no such file"),
        (["--method", "stochastic", "--policy", "argmax"], "argmax: this method decides by sample"),
    ],
)
def test_a_wrong_setting_is_named(flags, words, trained, tmp_path):
    assert words in refusal(trained.again, tmp_path, *flags)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", METHODS)
def test_without_source_weights_only_training_from_scratch_works(kind, trained, tmp_path):
    flags = ["--pretrained", "none", "--tasks", "svhn", "--method", kind, "--nb_epochs", "1"]
    if kind == "scratch":
        trained.again(tmp_path, *flags)
    else:
        line = refusal(trained.again, tmp_path, *flags)
        assert line.startswith("no source weights: ")
        assert "--pretrained" in line
        assert line.endswith("only --method scratch needs none")


@pytest.mark.parametrize("missing", ["svhn", "imagenet12"])
def test_a_file_of_means_that_lacks_the_task_or_its_source_is_refused(missing, trained, tmp_path):
    (present,) = {"svhn", "imagenet12"} - {missing}
    own = tmp_path / "mine.pickle"
    own.write_bytes(pickle.dumps({f"{present}mean": [0.5] * 3, f"{present}std": [0.2] * 3}))
    flags = ["--tasks", "svhn", "--mean_std", own]
    line = refusal(trained.again, tmp_path, *flags)
    assert line.startswith(f"--mean_std: the file has no mean and std for {missing}")
    if present == "svhn":  # all that a method without a source needs
        trained.again(tmp_path, *flags, "--method", "scratch", "--nb_epochs", "1")
        assert left(tmp_path).settings.mean == (0.5, 0.5, 0.5)


def one_more_category(content, task):
    content["categories"].append({"id": task * 10_000_000 + 99, "name": "x", "supercategory": "x"})


def test_damaged_annotations_are_named_before_any_training(own_data, trained, tmp_path):
    def line(task, split, change):
        path = own_data / f"annotations/{task}_{split}.json"
        before = path.read_text()
        edit_json(path, change)
        found = refusal(trained.again, tmp_path / "new", "--datadir", own_data, "--tasks", task)
        path.write_text(before)
        return found

    assert "have no label" in line("svhn", "val", lambda content: content.pop("annotations"))
    told = line("imagenet12", "val", lambda content: one_more_category(content, 6))
    assert "knows 6 categories, the annotations list 7" in told
    (own_data / "annotations/svhn_train.json").unlink()
    flags = ["--datadir", own_data, "--tasks"]
    assert "svhn_train.json" in refusal(trained.again, tmp_path / "new", *flags, "svhn")
    told = refusal(trained.again, tmp_path / "new", *flags, "imagenet12", "dtd")
    assert told.startswith("dtd: expected images in ")
    assert not (tmp_path / "new/svhn/checkpoint.safetensors").exists()


def test_a_folder_that_is_a_file_is_named_before_any_work(own_data, tmp_path):
    (tmp_path / "file").touch()
    done = run_script("main.py", "--datadir", own_data, "--ckpdir", tmp_path / "file")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'file'}: ")
    assert not (own_data / "packed").exists()


def test_submitting_without_checkpoints_writes_nothing(trained, tmp_path):
    out = tmp_path / "results.json"
    line = refusal(answers_of, submit_val, trained.root, tmp_path, out)
    assert "no task could be predicted" in line
    assert not out.exists()


def test_networks_of_other_classes_do_not_answer(trained, own_data, tmp_path):
    path = own_data / "annotations/svhn_val.json"
    edit_json(path, lambda content: one_more_category(content, 8))
    out = tmp_path / "results.json"
    out.write_text("old")
    line = refusal(answers_of, submit_val, own_data, trained.ckpdir, out, "--tasks", "svhn")
    assert "knows 3 categories" in line
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("moves", "datadir", "advice"),
    [
        ([], "decathlon-1.0/data", "decathlon-1.0 holds annotations/ and data/: give --datadir "),
        ([], ".", "decathlon-1.0 holds annotations/ and data/: give --datadir "),
        ([("annotations", "../devkit/annotations")], "decathlon-1.0",
         "devkit holds annotations/: give --imdbdir "),
        ([("data/svhn", "data/svhn/svhn")], "decathlon-1.0",
         "data/svhn/svhn: move that folder to "),
        ([("data/svhn", "svhn")], "decathlon-1.0", "svhn: move that folder to "),
        ([("data/svhn", "../decathlon-1.0-data/svhn")], "decathlon-1.0",
         "decathlon-1.0-data/svhn: move that folder to "),
        ([("data/svhn", None)], "decathlon-1.0", "svhn.tar is still packed: run `tar -xf "),
    ],
)  # fmt: skip
def test_data_that_are_one_level_off_are_found_and_it_is_said_what_to_do(
    moves, datadir, advice, own_data, trained, tmp_path
):
    for source, target in moves:
        shutil.move(own_data / source, tmp_path / "moved")
        place = own_data / (target or f"{source}.tar")
        place.parent.mkdir(parents=True, exist_ok=True)
        if target:
            shutil.move(tmp_path / "moved", place)
        else:
            place.touch()
    flags = ["--datadir", tmp_path / datadir, "--tasks", "svhn"]
    assert advice in refusal(trained.again, tmp_path / "new", *flags)
