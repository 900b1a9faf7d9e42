"""What the benchmarks share: training and evaluation steps to time, seconds, peak memory."""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.plain_form import plain_optimizers, plain_predict, plain_train_step
from engine.step import Trainer
from gumbel_softmax import gumbel_noise
from methods.optimizers import Rates
from methods.registry import build_method
from methods.spottune import SpotTune
from models.resnet26 import resnet26
from runtime.devices import Compute
from runtime.errors import SpotTuneError

RATES = Rates(network=0.01, policy=0.01, weight_decay=5e-4)
FORMS = ("plain", "fast")  # see plain_form.py; what main.py computes
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sizes:
    """What a step computes."""

    batch_size: int
    height: int  # of the images, in pixels
    width: int
    stem: int  # channels of the network's first layer


def new_method(sizes: Sizes, device: torch.device) -> SpotTune:
    """A SpotTune network for 100 classes with random weights, the same in each call."""
    torch.manual_seed(0)
    return build_method("spottune", resnet26(100, sizes.stem), sizes.stem).to(device)


def random_batch(sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Images N x 3 x height x width (NCHW), labels N and Gumbel noise N x 12 x 2, on the device.

    Random pixels: speed does not depend on what images show.
    """
    generator = torch.Generator().manual_seed(0)
    count = sizes.batch_size
    images = torch.randn(count, 3, sizes.height, sizes.width, generator=generator)
    labels = torch.randint(0, 100, (count,), generator=generator)
    noise = gumbel_noise((count, 12, 2), generator)
    return images.to(device), labels.to(device), noise.to(device)


def training_step(form: str, sizes: Sizes, compute: Compute) -> Callable[[], object]:
    """A function that updates both networks on one batch."""
    method = new_method(sizes, compute.device).train()
    images, labels, noise = random_batch(sizes, compute.device)
    if form == "plain":
        optimizers = plain_optimizers(method, RATES)
        return lambda: plain_train_step(images, labels, noise, method, optimizers)
    trainer = Trainer(method, RATES, compute, sizes.batch_size)
    images = images.contiguous(memory_format=torch.channels_last)
    return lambda: trainer.step(images, labels, noise)


def evaluation_step(form: str, sizes: Sizes, compute: Compute) -> Callable[[], object]:
    """A function that decides and predicts for one batch.

    Drawn decisions split a batch about in half, which is the routed network's worst case.
    """
    method = new_method(sizes, compute.device).eval()
    images, _, noise = random_batch(sizes, compute.device)
    if form == "plain":
        return lambda: plain_predict(images, noise, method)
    evaluator = method.to(memory_format=torch.channels_last).evaluator()
    images = images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> None:
        with compute.autocast():
            evaluator(images, noise)

    return run


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, including the device's work."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def median_seconds(
    runs: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Of each run, after a warm-up; they take turns, so that load affects all of them."""
    warm_up = 3 if device.type == "cuda" else 1
    times = [
        {name: seconds_of(run, device) for name, run in runs.items()}
        for _ in range(warm_up + rounds)
    ]
    return {name: statistics.median(row[name] for row in times[warm_up:]) for name in runs}


def in_own_process(
    function: Callable[..., Result], *arguments: object, timeout: float | None = None
) -> Result:
    """Call it in a new process, so that peak memory is its own.

    Raises SpotTuneError if it takes more than `timeout` seconds; the process is killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        before = set(multiprocessing.active_children())
        future = pool.submit(function, *arguments)
        if not wait([future], timeout).done:
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            raise SpotTuneError(f"it took more than {timeout:.0f} s")
        return future.result()


def peak_mib(device: torch.device) -> float:
    """MiB at the peak of this process's memory, or of its GPU memory.

    Linux's ru_maxrss also counts what the parent held when it started this process; VmHWM does not.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
