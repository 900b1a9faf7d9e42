"""Faults of machine and files, each made to happen for real to a running script."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY

import main
from decathlon import SOURCE
from engine.checkpoints import Checkpoint
from engine.fit import not_finite
from engine.records import TIMING_FIELDS
from image_cache.decoding import AS_SCRIPT
from runtime.errors import SpotTuneError
from sample_data import make


@pytest.fixture(scope="module")
def base(trained):
    source = trained.ckpdir / SOURCE.name / "checkpoint.safetensors"
    return [*trained.arguments, "--pretrained", str(source), "--tasks", "svhn"]


def start(script, arguments, prelude="", before=(), **options):
    """A script of the repository in a process of its own; `prelude` runs in it first."""
    imports = f"import sys, {script}\nfrom runtime import errors\n"
    code = f"{imports}{prelude}\nerrors.run_script({script}.main)"
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        **options,
    )  # fmt: skip


def one_line(process):
    """The only line of an error, from a process that ended with status 1."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert said.count("\n") == 1, said
    (line,) = said.splitlines()
    return line


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(process.stderr.read())


def same_as(trained, ckpdir):
    ours, theirs = (
        Checkpoint.load(d / "svhn/checkpoint.safetensors") for d in (ckpdir, trained.ckpdir)
    )
    for record in (*ours.history, *theirs.history):
        for name in TIMING_FIELDS:
            del record[name]
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=0, atol=0)
    assert ours.history == theirs.history


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here; the file-size limit below is tried")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_once_there_is_room(
    base, trained, small_disk
):
    """Room for one checkpoint of 1.4 MB and the next, but not for a third."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(800_000))
    arguments = [*base, "--ckpdir", small_disk, "--checkpoint_minutes", "1e-9"]
    line = one_line(start("main", arguments))
    assert "no space is left there" in line
    assert not list(small_disk.glob("**/*.tmp"))
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    done = start("main", arguments)
    assert done.communicate(timeout=120)[1] == ""
    assert done.returncode == 0
    same_as(trained, small_disk)


def test_a_file_size_limit_ends_in_one_line_and_leaves_the_checkpoint_before(
    base, trained, tmp_path
):
    main.main([*base, "--ckpdir", str(tmp_path), "--nb_epochs", "1"])
    before = (tmp_path / "svhn/checkpoint.safetensors").read_bytes()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    line = one_line(start("main", [*base, "--ckpdir", tmp_path], prelude=limit))
    assert "the file would be larger than allowed" in line
    assert (tmp_path / "svhn/checkpoint.safetensors").read_bytes() == before
    main.main([*base, "--ckpdir", str(tmp_path)])
    same_as(trained, tmp_path)


@pytest.fixture
def without_root_powers():
    """A prefix for commands that makes file permissions bind root too."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write anywhere, and setpriv is not here to change that")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def test_a_folder_that_turns_read_only_ends_in_one_line_and_the_run_goes_on_later(
    base, trained, tmp_path, without_root_powers
):
    arguments = [*base, "--ckpdir", tmp_path, "--nb_epochs", "100000"]
    process = start("main", arguments, before=without_root_powers)
    wait_for(process, "svhn epoch 1/")
    folder = tmp_path / "svhn"
    folder.chmod(0o555)
    assert f"{folder}/" in (line := one_line(process))
    assert "permission was denied" in line
    folder.chmod(0o755)
    assert len(Checkpoint.load(folder / "checkpoint.safetensors").history) >= 1


def test_an_image_that_may_not_be_read_is_named_by_the_process_that_decodes_it(
    decathlon_root, tmp_path, without_root_powers
):
    original = next((decathlon_root / "data/svhn/train").rglob("*.jpg"))
    shutil.copyfile(original, tmp_path / "image.jpg")
    (tmp_path / "image.jpg").chmod(0)
    (tmp_path / "pack").touch()
    task = {"names": ["image.jpg"], "folder": str(tmp_path), "side": 40, "chunk": 1}
    (tmp_path / "task").write_text(json.dumps({**task, "file": str(tmp_path / "pack")}))
    command = [sys.executable, "-c", AS_SCRIPT, tmp_path / "task", "0", "1"]
    done = subprocess.run([*without_root_powers, *command], capture_output=True, check=True)
    assert f"{tmp_path}/image.jpg: permission was denied" in done.stdout.decode(errors="replace")
    assert done.stderr == b""


def test_a_loss_that_is_not_finite_stops_before_the_optimisers_step(base, tmp_path):
    """Weights as they were after the step before; task, epoch, step and images are named."""
    with pytest.raises(SpotTuneError) as caught:
        main.main(
            [*base, "--ckpdir", str(tmp_path), "--lr", "1e30", "--checkpoint_minutes", "1e-9"]
        )
    found = re.search(
        r"svhn epoch 1/2, step (\d): the loss became nan.* Images: ([\d, ]+)", str(caught.value)
    )
    step, images = int(found[1]), found[2].split(", ")
    assert len(images) in (4, 8)
    assert all(image.startswith("8000") for image in images)
    left = Checkpoint.load(tmp_path / "svhn/checkpoint.safetensors")
    assert left.unfinished["steps"] == step - 1


def infinite_gradient(weights):
    """Of a convolution of zeros: scales after it change no zero, but multiply its gradient."""
    block = "net.pairs.0.fine_tuned"
    values = {"conv1.weight": 0.0, "bn1.weight": 1e30, "bn1.bias": 1e-20, "conv2.weight": 1e15}
    for name, value in values.items():
        weights[f"{block}.{name}"].fill_(value)


def infinite_variance(weights):
    """Of activations beyond 10^19; the next BatchNorm divides them by it, so they become 0."""
    weights["net.stem.bn.weight"].fill_(1e30)


@pytest.mark.parametrize("minutes", ["1e-9", "10"], ids=["inside an epoch", "after an epoch"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (infinite_gradient, "net.stem.conv.weight"),
        (infinite_variance, "net.pairs.0.kept.bn1.running_var"),
    ],
)
def test_weights_that_are_not_finite_are_not_saved_though_the_loss_is(
    change, named, minutes, base, tmp_path
):
    """One step an epoch: the loss is that of the weights before it. The good checkpoints stay."""
    arguments = [*base, "--ckpdir", str(tmp_path), "--batch_size", "16", "--nb_epochs"]
    main.main([*arguments, "1"])
    path = tmp_path / "svhn/checkpoint.safetensors"
    good = Checkpoint.load(path)
    change(good.weights)
    good.save(path)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(SpotTuneError) as caught:
        main.main([*arguments, "2", "--checkpoint_minutes", minutes])
    line = str(caught.value)
    assert line.startswith("svhn epoch 2/2, step 1: after a finite loss ")
    assert named in line
    assert "\n" not in line
    assert "--lr" in line
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors", "decisions.json"):
        assert (path.parent / name).read_bytes() == before[name]


def test_large_weights_whose_sum_overflows_are_finite():
    assert not_finite({"weight": torch.full((10,), 3e38), "steps": 2}) == []


LITTLE_MEMORY = """
import resource
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**28, used + 2**28))
"""


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "compact.safetensors"])
def test_a_checkpoint_that_claims_a_wide_network_is_refused_before_one_is_built(
    name, trained, tmp_path
):
    """110 kB of weights, as of a network that takes 24 GB."""
    path = tmp_path / "svhn" / name
    path.parent.mkdir()
    good = Checkpoint.load(trained.ckpdir / "svhn/checkpoint.safetensors")
    width = 1024
    stem = {"net.stem.conv.weight": torch.ones(width, 3, 3, 3)}
    bias = {"net.head.linear.bias": good.weights["net.head.linear.bias"]}
    settings = replace(good.settings, width=width)
    kind = "compact" if name == "compact.safetensors" else "spottune"
    replace(good, kind=kind, settings=settings, weights=stem | bias).save(path)
    arguments = ["--datadir", trained.root, "--ckpdir", tmp_path, "--tasks", "svhn"]
    arguments += ["--out", tmp_path / "results.json", "--device", "cpu"]
    arguments += ["--compact"] if kind == "compact" else []
    line = one_line(start("submit_val", arguments, prelude=LITTLE_MEMORY))
    assert f"{path}: its weights do not fit the {kind} network that it describes" in line


def test_a_source_that_claims_many_classes_is_refused_before_a_network_is_built(
    base, trained, tmp_path
):
    """900 kB of weights and category ids, as of a classifier that takes 0.8 GB."""
    width, classes = 256, 100_000
    good = Checkpoint.load(trained.ckpdir / SOURCE.name / "checkpoint.safetensors")
    stem = {"net.stem.conv.weight": torch.ones(width, 3, 3, 3)}
    bias = {"net.head.linear.bias": torch.ones(classes)}
    settings = replace(good.settings, width=width)
    path = tmp_path / "source.safetensors"
    categories = list(range(classes))
    replace(good, categories=categories, settings=settings, weights=stem | bias).save(path)
    arguments = [*base, "--ckpdir", tmp_path, "--pretrained", path, "--width", width]
    line = one_line(start("main", arguments, prelude=LITTLE_MEMORY))
    assert f"{path}: not the weights of this ResNet-26" in line


def limit_memory(megabytes):
    """A prelude: from the first training step on only so much more memory can be had.

    The limit is on the process's data, set after a first small batch has loaded the libraries.
    """
    return f"""
import resource, torch
from engine import evaluation, step as training
def limit():
    used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
    room = used + {megabytes} * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (room, room))
def limited(cls, name):
    original = getattr(cls, name)
    def wrapper(self, images, *rest):
        if not hasattr(self, "is_limited"):
            self.is_limited = True
            with torch.no_grad():
                model = getattr(self, "method", None) or self.evaluator
                with self.compute.autocast():
                    model.eval()(images[:1], [r for r in rest if torch.is_tensor(r)][-1][:1])
                model.train(hasattr(self, "method"))
            limit()
        return original(self, images, *rest)
    setattr(cls, name, wrapper)
limited(training.Trainer, "step")
limited(evaluation.InPieces, "__call__")
"""


@pytest.fixture(scope="module")
def larger_images(tmp_path_factory):
    """decathlon-1.0 with images of 64 x 64 pixels, 20 of them in svhn's val."""
    folder = tmp_path_factory.mktemp("larger")
    make.main([str(folder), "--classes", "2", "--images_per_class", "30", "--side", "64"])
    return folder / "decathlon-1.0"


@pytest.fixture(scope="module")
def larger(larger_images, tmp_path_factory):
    """A network for them, from scratch."""
    ckpdir = tmp_path_factory.mktemp("larger_checkpoints")
    flags = ["--datadir", str(larger_images), "--ckpdir", str(ckpdir), "--tasks", "svhn"]
    flags += ["--method", "scratch", "--resize", "64", "--crop", "64", "--width", "8"]
    flags += ["--device", "cpu", "--nb_epochs", "1", "--precision", "fp32"]
    main.main([*flags, "--batch_size", "16"])
    return flags


def test_out_of_memory_in_training_is_one_line_with_a_hint_and_no_smaller_batch(larger, tmp_path):
    flags = [*larger, "--batch_size", "60", "--ckpdir", tmp_path]
    line = one_line(start("main", flags, prelude=limit_memory(30)))
    assert "out of memory on cpu in a training step of 60 images of 64 x 64 pixels" in line
    assert "--batch_size" in line
    assert not (tmp_path / "svhn/checkpoint.safetensors").exists()


def test_out_of_memory_in_evaluation_is_said_and_gives_the_same_answers(larger, tmp_path):
    answers = []
    for name, prelude in (("plenty", ""), ("little", limit_memory(6))):
        out = tmp_path / name / "results.json"
        flags = [*larger[:6], "--device", "cpu", "--precision", "fp32", "--out", out]
        process = start("submit_val", flags, prelude=prelude)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        answers.append(json.loads(out.read_text()))
        assert ("out of memory in predicting" in said) == (name == "little"), said
    assert answers[0] == answers[1]
    assert len(answers[0]) > 8


def test_two_runs_with_a_clock_that_jumps_are_the_same(base, trained, tmp_path):
    """The wall clock leaps by days, forward and back, at every look."""
    jump = """
import itertools, time
leaps = itertools.cycle([0, 3e5, -9e5, 4e8])
real = time.time
time.time = lambda: real() + next(leaps)
"""
    process = start("main", [*base, "--ckpdir", tmp_path], prelude=jump)
    assert process.communicate(timeout=120)[1] == ""
    same_as(trained, tmp_path)
    lines = (tmp_path / "svhn/records.jsonl").read_text().splitlines()
    assert all(0 < json.loads(line)["seconds"] < 60 for line in lines)


def test_an_interrupted_submission_leaves_the_one_before(trained, tmp_path):
    out = tmp_path / "results.json"
    flags = ["--datadir", trained.root, "--ckpdir", trained.ckpdir, "--out", out, "--device", "cpu"]
    first = start("submit_val", flags)
    first.communicate(timeout=120)
    before = out.read_bytes()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))"
    line = one_line(start("submit_val", [*flags, "--policy", "sample"], prelude=limit))
    assert f"{out}: the file would be larger than allowed" in line
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("change", ["label", "image"])
def test_annotations_that_changed_between_two_runs_are_noticed(change, base, trained, tmp_path):
    root = tmp_path / "decathlon-1.0"
    shutil.copytree(trained.root, root, ignore=shutil.ignore_patterns("packed"))
    main.main([*base, "--datadir", str(root), "--ckpdir", str(tmp_path / "c"), "--nb_epochs", "1"])
    path = root / "annotations/svhn_train.json"
    content = json.loads(path.read_text())
    if change == "label":
        first, last = content["annotations"][0], content["annotations"][-1]
        first["category_id"] = last["category_id"]
    else:
        gone = content["images"].pop()["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]
    path.write_text(json.dumps(content))
    with pytest.raises(SpotTuneError, match="trained on other images or labels than the annot"):
        main.main([*base, "--datadir", str(root), "--ckpdir", str(tmp_path / "c")])


@pytest.mark.parametrize("damage", ["half", "zeros"])
def test_a_damaged_jpeg_is_named_before_any_training(damage, base, trained, tmp_path):
    root = tmp_path / "decathlon-1.0"
    shutil.copytree(trained.root, root, ignore=shutil.ignore_patterns("packed"))
    image = sorted((root / "data/svhn/train").glob("**/*.jpg"))[3]
    data = image.read_bytes()
    half = data[: len(data) // 2]
    image.write_bytes(half if damage == "half" else half[:20] + bytes(len(data) - 20))
    line = one_line(start("main", [*base, "--datadir", root, "--ckpdir", tmp_path / "c"]))
    assert image.name in line
    assert not (tmp_path / "c/svhn/checkpoint.safetensors").exists()


def test_a_pack_cut_short_between_two_runs_is_made_again_with_the_same_result(
    base, trained, tmp_path, capsys
):
    cache = tmp_path / "packed"
    flags = [*base, "--cachedir", str(cache), "--ckpdir", str(tmp_path / "c")]
    main.main([*flags, "--nb_epochs", "1"])
    (pack,) = cache.glob("svhn_train_*.pack")
    os.truncate(pack, pack.stat().st_size // 2)
    main.main(flags)
    assert f"{pack}: " in (said := capsys.readouterr().out)
    assert "packing the images again" in said
    same_as(trained, tmp_path / "c")
