"""Two processes that train together, started as torchrun does (gloo, on the CPU)."""

import os
import socket
import subprocess
import sys

import pytest
from conftest import PATIENCE, REPOSITORY

from runtime.distributed import Group, check_group
from runtime.errors import SpotTuneError

PROGRAM = """
import torch
from runtime.distributed import group_of_processes
from runtime.errors import SpotTuneError, run_script

def main():
    torch.set_num_threads(1)
    with group_of_processes(torch.device("cpu")) as group:
        {body}

run_script(main)
"""


def ended(body):
    """Status and standard error of both processes, whose work in the group is these statements."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", PROGRAM.format(body="\n        ".join(body.splitlines()))]
    path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"
    processes = [
        subprocess.Popen(
            command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **place, "RANK": str(rank), "PYTHONPATH": path},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], told


@pytest.mark.parametrize("fails", [0, 1])
def test_if_one_process_fails_the_other_ends_too_and_says_why(fails):
    body = f"if group.rank == {fails}: raise SpotTuneError('svhn: broken')\ngroup.agree(0)"
    statuses, told = ended(body)
    assert statuses == [1, 1]
    assert told[fails] == "error: svhn: broken\n"
    other = 1 - fails
    assert told[other].endswith(
        f"error: process {other} of 2: another one has ended, so this one ends too. See the "
        f"other's message\n"
    )
    assert "Traceback" not in told[other]


NOT_FINITE = """
from dataclasses import replace
import numpy as np
from networks import CPU, tiny_method
from engine.step import EpochSums, Trainer, train_epoch
from image_cache.batches import TaskData
from image_cache.orders import View
from image_cache.packed import INDEX, PackedImages
from methods.optimizers import Rates

index = np.zeros(8, INDEX)
index["offset"], index["image_id"] = 16 * 16 * 3 * np.arange(8), 10 + np.arange(8)
index["height"] = index["width"] = 16
images = PackedImages([np.zeros(8 * 16 * 16 * 3, np.uint8)], [index], np.array([1]))
data = TaskData(images, View(16, 16, random=True), ([0.5] * 3, [0.5] * 3), CPU.device)
method = tiny_method("source")
trainer = Trainer(method, Rates(0.1, 0.1, 0.0), replace(CPU, group=group), 8)
if group.rank:  # its images alone are at fault
    trainer.method.penalty = lambda decisions_NL: float("inf")
next(train_epoch(trainer, data, (0,), "svhn", EpochSums.zero(method.num_blocks, CPU.device)))
"""


def test_a_loss_that_is_not_finite_in_one_process_is_told_with_the_images_of_all():
    """Those of the first process alone, which speaks, would be the wrong ones."""
    statuses, told = ended(NOT_FINITE)
    assert statuses == [1, 1]
    assert "svhn, step 1: the loss became nan or infinite, so the networks" in told[0]
    assert "svhn, step 1: the loss became inf, so the networks" in told[1]
    for line in told:
        names = line.rpartition("Images: ")[2].partition(".")[0]
        assert sorted(names.split(", ")) == [str(number) for number in range(10, 18)]


def test_several_processes_do_not_compile():
    with pytest.raises(SpotTuneError, match="--compile trains in one process, and 2 were asked"):
        check_group(Group(size=2), 128, only_source=True, compiled=True)
    check_group(Group(), 128, only_source=False, compiled=True)
