"""A careless user: every mistake gets one line, a non-zero status, and loses nothing."""

import json
import pickle
import resource
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, SMALL, run_script

import main
import submit_val
from engine.checkpoints import Checkpoint
from runtime.errors import SpotTuneError


@pytest.fixture
def own_data(decathlon_root, tmp_path):
    """A private copy of two tasks' data, to be damaged."""
    root = tmp_path / "decathlon-1.0"
    for part in ("annotations", "data/svhn", "data/imagenet12"):
        shutil.copytree(decathlon_root / part, root / part)
    return root


@pytest.fixture
def source(trained):
    return trained.ckpdir / "imagenet12/checkpoint.safetensors"


def arguments(root, ckpdir, *more):
    return ["--datadir", str(root), "--ckpdir", str(ckpdir), *SMALL, "--nb_epochs", "1", *more]


def refusal(*argv, script=main):
    """The message of the one line that a user would read."""
    with pytest.raises(SpotTuneError) as caught:
        script.main([str(argument) for argument in argv])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_path_names_both_ways_on(tmp_path):
    line = refusal("--datadir", tmp_path / "nowhere")
    assert "nowhere: no such folder" in line
    assert "./download_data.sh ./data/" in line
    assert "make demo" in line


def test_an_unknown_task_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["--tasks", "mnist"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no task is named 'mnist' (expected aircraft, " in line


def test_a_misspelt_task_is_suggested(capsys):
    with pytest.raises(SystemExit):
        main.main(["--tasks", "DTD"])
    assert "did you mean dtd?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resize", "70"], "--resize 70: expected a multiple of 8"),
        (["--crop", "60"], "--crop 60: expected a multiple of 8"),
        (["--crop", "8"], "--crop 8: expected between 16 and"),
        (["--resize", "32", "--crop", "40"], "--crop 40: larger"),
        (["--device", "cuda:9"], "--device cuda:9: not available here"),
        (["--device", "quantum"], "--device quantum: not available here"),
        (["--mean_std", "nowhere.pickle"], "nowhere.pickle"),
        (["--pretrained", "nowhere.t7"], "nowhere.t7: no such file"),
    ],
)
def test_a_wrong_setting_is_named(flags, words, decathlon_root, tmp_path):
    assert words in refusal("--datadir", decathlon_root, "--ckpdir", tmp_path, *flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--lr", "nan"],
        ["--nb_epochs", "0"],
        ["--batch_size", "-1"],
        ["--seed", "9" * 20],
        ["--step1", "9" * 20],
    ],
)
def test_numbers_that_make_no_sense_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        main.main(flags)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_targets_without_source_weights_are_refused(own_data, tmp_path):
    more = ["--tasks", "svhn", "--pretrained", "none"]
    line = refusal(*arguments(own_data, tmp_path / "new", *more))
    assert "no source weights" in line
    assert "--pretrained" in line


@pytest.mark.parametrize("missing", ["svhn", "imagenet12"])
def test_a_file_of_means_that_lacks_the_task_or_its_source_is_refused(
    missing, trained, tmp_path, source
):
    (present,) = {"svhn", "imagenet12"} - {missing}
    own = tmp_path / "mine.pickle"
    own.write_bytes(pickle.dumps({f"{present}mean": [0.5] * 3, f"{present}std": [0.2] * 3}))
    more = ["--tasks", "svhn", "--mean_std", str(own)]
    more = arguments(trained.root, tmp_path / "new", *more)
    line = refusal(*more, "--pretrained", source)
    assert line.startswith(f"--mean_std: the file has no mean and std for {missing}")
    if present == "svhn":
        main.main([*more, "--method", "scratch"])  # it has no source


def test_a_missing_annotation_file_is_named(own_data, tmp_path, source):
    (own_data / "annotations/svhn_train.json").unlink()
    more = ["--tasks", "svhn", "--pretrained", source]
    assert "svhn_train.json" in refusal(*arguments(own_data, tmp_path / "new", *more))


def test_a_task_without_images_is_named_before_any_training(own_data, tmp_path, source):
    more = ["--tasks", "svhn", "dtd", "--pretrained", source]
    line = refusal(*arguments(own_data, tmp_path / "new", *more))
    assert line.startswith("dtd: expected images in ")
    assert not (tmp_path / "new/svhn").exists()


def test_val_without_labels_is_refused(own_data, tmp_path, source):
    path = own_data / "annotations/svhn_val.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    more = ["--tasks", "svhn", "--pretrained", source]
    assert "have no label" in refusal(*arguments(own_data, tmp_path / "new", *more))


def test_weights_of_another_width_are_refused(trained, tmp_path, source):
    more = ["--tasks", "svhn", "--pretrained", source, "--width", "8"]
    line = refusal(*arguments(trained.root, tmp_path, *more))
    assert "width 4; expected width 8" in line


def test_weights_of_another_class_count_are_refused_for_imagenet12(own_data, tmp_path, source):
    path = own_data / "annotations/imagenet12_val.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 60_000_099, "name": "x", "supercategory": "imagenet12"})
    path.write_text(json.dumps(content))
    more = ["--tasks", "imagenet12", "--pretrained", source]
    line = refusal(*arguments(own_data, tmp_path / "new", *more))
    assert "knows 4 categories" in line
    assert "list 5" in line


def test_a_source_from_a_file_is_not_taken_for_one_trained_here(trained, tmp_path, source):
    main.main(
        arguments(trained.root, tmp_path, "--tasks", "imagenet12", "--pretrained", str(source))
    )
    line = refusal(*arguments(trained.root, tmp_path, "--pretrained", "none"))
    assert "was taken from a file" in line


def test_a_source_trained_here_is_not_replaced_by_a_file(trained, tmp_path, source):
    other = tmp_path / "other.pt"
    content = vars(Checkpoint.load(source))
    weights = {name: 2 * tensor for name, tensor in content["weights"].items()}
    Checkpoint(**{**content, "weights": weights}).save(other)
    before = source.read_bytes()
    line = refusal(*arguments(trained.root, trained.ckpdir, "--pretrained", other))
    assert "was trained here" in line
    assert source.read_bytes() == before


def test_a_file_that_is_no_network_is_not_to_be_removed(trained, tmp_path):
    readme = REPOSITORY / "README.md"
    line = refusal(*arguments(trained.root, tmp_path, "--pretrained", readme))
    assert "name another file" in line
    assert "Remove" not in line


def test_an_empty_folder_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main.main(["--ckpdir", ""])
    assert "empty name" in capsys.readouterr().err


def test_a_target_networks_checkpoint_is_no_source(trained, tmp_path):
    target = trained.ckpdir / "svhn/checkpoint.safetensors"
    line = refusal(*arguments(trained.root, tmp_path, "--pretrained", target, "--tasks", "dtd"))
    assert "found the spottune network of svhn, expected a ResNet-26" in line


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.safetensors"])
def test_a_checkpoint_that_cannot_be_read_is_named_and_kept(name, trained, tmp_path, source):
    """Of an earlier version, or damaged."""
    path = tmp_path / "svhn" / name
    path.parent.mkdir()
    path.write_bytes(b"no checkpoint of this version")
    more = [*trained.arguments, "--ckpdir", str(tmp_path), "--pretrained", str(source)]
    assert refusal(*more, "--tasks", "svhn").startswith(f"{path}: ")
    assert {each.name for each in path.parent.iterdir()} == {".lock", name}
    assert path.read_bytes() == b"no checkpoint of this version"


def test_a_folder_that_is_a_file_is_named_before_any_work(own_data, tmp_path):
    (tmp_path / "file").touch()
    done = run_script("main.py", *arguments(own_data, tmp_path / "file"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'file'}: ")
    assert not (own_data / "packed").exists()


def test_no_room_for_a_file_is_said_in_one_line_and_leaves_nothing_half_written(
    own_data, tmp_path, source
):
    """A file-size limit stands in for a full disk: both fail in the middle of a write."""
    ckpdir = tmp_path / "checkpoints"
    command = [sys.executable, str(REPOSITORY / "main.py"), *arguments(own_data, ckpdir)]
    command += ["--tasks", "svhn", "--pretrained", str(source)]
    limit = 100_000  # bytes: the packed images fit, the checkpoint does not

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "checkpoint.safetensors: " in line
    assert [path for path in ckpdir.rglob("*") if ".tmp" in path.name] == []


def test_submitting_without_checkpoints_writes_nothing(trained, tmp_path):
    out = tmp_path / "results.json"
    line = refusal("--datadir", trained.root, "--ckpdir", tmp_path, "--out", out, script=submit_val)
    assert "no task could be predicted" in line
    assert not out.exists()


def test_networks_of_other_classes_do_not_answer(trained, own_data, tmp_path):
    path = own_data / "annotations/svhn_val.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 80_000_099, "name": "x", "supercategory": "svhn"})
    path.write_text(json.dumps(content))
    out = tmp_path / "results.json"
    out.write_text("old")
    flags = ["--datadir", own_data, "--ckpdir", trained.ckpdir, "--out", out]
    line = refusal(*flags, "--tasks", "svhn", script=submit_val)
    assert "knows 2 categories" in line
    assert out.read_text() == "old"
