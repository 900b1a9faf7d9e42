"""The source network trained by several processes, started by torchrun (gloo, on the CPU)."""

import os
import shutil
import signal
import subprocess

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, drop_last_image, left, outcome
from reference import sgd_step

import main
from decathlon import SOURCE
from engine.fit import Pace
from engine.transfer import Workspace
from image_cache.packed import DataFolders
from launch.slurm import launch_command
from methods.registry import build_method
from models.resnet26 import resnet26
from runtime.devices import Compute
from runtime.distributed import ALONE
from runtime.randomness import seeded_globally

FLAGS = [*SMALL, "--tasks", SOURCE.name, "--pretrained", "none", "--train_split", "train"]
FLAGS += ["--batch_size", "8", "--source_epochs", "2", "--source_steps", "--eval_every", "2"]


def torchrun(root, ckpdir, *flags, before=()):
    """Two processes, started as on a cluster."""
    program = [str(main.SCRIPT), *FLAGS, "--datadir", str(root), "--ckpdir", str(ckpdir), *flags]
    command = [*before, *launch_command(program, 2, ["localhost"], own=0, job=0)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(process):
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return said


@pytest.fixture(scope="module")
def odd_root(decathlon_root, tmp_path_factory):
    """23 training images: the last batch of 8 has 7, so that two processes get 4 and 3."""
    root = tmp_path_factory.mktemp("odd") / "decathlon-1.0"
    shutil.copytree(decathlon_root, root, ignore=shutil.ignore_patterns("packed"))
    drop_last_image(root / "annotations" / f"{SOURCE.name}_train.json")
    return root


@pytest.fixture(scope="module")
def together(odd_root, tmp_path_factory):
    ckpdir = tmp_path_factory.mktemp("together")
    return ckpdir, finish(torchrun(odd_root, ckpdir))


def by_hand(root, settings):
    """Two epochs in one process: gradients of the halves of each batch, by their numbers of images.

    Each half goes through a copy of its own, so that BatchNorm sees only that half.
    """
    folders = DataFolders(root, root / "annotations", root / "packed")
    place = Workspace(folders, root, {}, Compute(torch.device("cpu"), "fp32"), Pace(1, 600.0))
    data = place.data(SOURCE, ("train",), settings)
    with seeded_globally(0, SOURCE.name):
        method = build_method("source", resnet26(len(data.images.categories), 4), 4)
    parameters, momenta, losses = dict(method.named_parameters()), {}, []
    for epoch in range(2):
        epoch_losses = []
        for batch in data.training_batches(8, (0, SOURCE.name, epoch), "", 0, ALONE):
            images, labels = batch.images_N3HW, batch.labels_N
            gradients = dict.fromkeys(parameters, 0)
            for rank in (1, 0):  # the first last, so that running statistics are those of it
                running = {n: b.clone() for n, b in method.named_buffers()}
                method.train().zero_grad()
                scores = method.net(images[rank::2])
                loss = F.cross_entropy(scores, labels[rank::2], reduction="sum")
                epoch_losses.append(loss.item())
                (loss / len(images)).backward()
                gradients = {n: gradients[n] + p.grad for n, p in parameters.items()}
                if rank == 1:
                    for name, buffer in method.named_buffers():
                        buffer.copy_(running[name])
            sgd_step(parameters, gradients, momenta, 0.1, SOURCE.weight_decay)
        losses.append(sum(epoch_losses) / len(data.images))
    return method.state_dict(), losses


def test_two_processes_step_by_the_gradient_of_the_whole_batch(together, odd_root):
    """Weights, running statistics and losses, against halves that were put together by hand.

    Rounding grows in six steps with BatchNorm over 3 or 4 images: hence the tolerance.
    """
    found = left(together[0], SOURCE.name)
    expected, losses = by_hand(odd_root, found.settings)
    for name, tensor in expected.items():
        torch.testing.assert_close(found.weights[name], tensor, rtol=2e-3, atol=2e-3, msg=name)
    assert [record["train_loss"] for record in found.history] == pytest.approx(losses, rel=1e-4)


def test_only_the_first_process_speaks_and_writes(together):
    ckpdir, said = together
    assert said.count("imagenet12 epoch 1/2") == 1
    assert "2 x cpu" in said
    assert not list(ckpdir.glob("**/*.tmp"))
    record = left(ckpdir, SOURCE.name).history[-1]
    assert record["val_accuracy"] is not None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_stopped_and_started_again_the_bits_are_the_same(name, decathlon_root, tmp_path):
    """SIGTERM to one process alone, not the first: all agree on the step to stop after. SIGHUP, of
    a closed terminal, to torchrun, which forwards it, even under nohup."""
    process = torchrun(decathlon_root, tmp_path, "--source_epochs", "100000", before=["nohup"])
    while "epoch 2/" not in process.stdout.readline():
        assert process.poll() is None
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, check=True)
    last = max(map(int, listed.stdout.split()))
    os.kill(last if name == "SIGTERM" else process.pid, getattr(signal, name))
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    epochs = len(left(tmp_path, SOURCE.name).history)
    assert f"{name}: stopped; the same command continues" in errors
    again = ["--source_epochs", str(epochs + 1)]
    finish(torchrun(decathlon_root, tmp_path, *again))
    straight = tmp_path / "straight"
    finish(torchrun(decathlon_root, straight, *again))
    assert outcome(tmp_path, SOURCE.name) == outcome(straight, SOURCE.name)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tasks", "svhn"], "only imagenet12 trains in several"),
        (["--batch_size", "7"], "--batch_size 7: cannot be divided among 2 processes"),
    ],
)
def test_what_cannot_be_divided_is_one_clear_line(flags, words, decathlon_root, tmp_path):
    process = torchrun(decathlon_root, tmp_path, *flags)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert words in errors
