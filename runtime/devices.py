"""Where to compute and how precisely, chosen once and said aloud."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.distributed import ALONE, Group
from runtime.errors import SpotTuneError

DEVICE_TYPES = ("cpu", "cuda", "mps")
# The CPU's allocator and oneDNN, which says no more than the last, have no exception of their own.
SAID_WITHOUT_MEMORY = ("can't allocate memory", "out of memory", "could not create a primitive")


@dataclass(frozen=True)
class Compute:
    """A device and a precision: "fp32", or "bf16" for the convolutions.

    Linear layers, logits, Gumbel noise, softmax and loss are float32 in both.
    """

    device: torch.device
    precision: str
    compiled: bool = False  # training steps through torch.compile with CUDA graphs
    group: Group = ALONE  # the processes that train together

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 where it was chosen, else nothing."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    def compile(self, function: Callable) -> Callable:
        """`function` compiled for one batch shape, where that was chosen, else as it is."""
        if not self.compiled:
            return function
        return torch.compile(function, mode="reduce-overhead", dynamic=False)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without making the host wait for what the device is doing."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device, or the machine, had no memory left for what was asked."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(words in text for words in SAID_WITHOUT_MEMORY)


def reading(figure: Tensor) -> Callable[[], float]:
    """Begin to read a number back; the call waits only for what was asked of the device so far."""
    if figure.device.type != "cuda":
        return figure.item
    on_host = figure.detach().to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> float:
        copied.synchronize()
        return on_host.item()

    return wait


def job_devices(device_name: str, jobs: int | None, num_tasks: int) -> list[str]:
    """The device of each of `jobs` processes that run side by side.

    `jobs` None: as many as there are visible GPUs, where the name leaves open which, but not more
    than tasks; else one. GPUs are only counted: what watches the processes must not open any.
    Raises SpotTuneError if the device is not there.
    """
    gpus = _gpus() if device_name in ("auto", "cuda") else []
    devices = gpus or ["cpu" if device_name == "auto" else device_name]
    count = jobs or min(len(devices), num_tasks)
    if count > 1 and devices[0] not in _gpus():
        choose_compute(devices[0], "fp32")  # refuses what is not there
    return [devices[slot % len(devices)] for slot in range(count)]


def choose_compute(
    device_name: str, precision: str, compiled: bool = False, threads: int | None = None
) -> Compute:
    """`device_name` "auto" takes a GPU if there is one; `precision` "auto" bf16 where it is fast.

    `threads`: CPU threads of this process; None leaves them as PyTorch chose. Raises SpotTuneError
    if the device is not there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device_name)
        if device.type not in DEVICE_TYPES:
            raise RuntimeError("expected cpu, cuda, cuda:N or mps")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise SpotTuneError(
            f"--device {device_name}: not available here ({reason[:120]}); this machine has "
            f"{_devices_here()}. Choose one of them, or leave --device out"
        ) from error
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    if device.type == "cuda":  # one seed, one result: no algorithm is chosen by a stopwatch
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.cuda.set_device(device.index or 0)  # what names no GPU must not open the first one
    return Compute(device, precision, compiled)


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 has instructions of its own there; elsewhere it is emulated, and slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    asks_processor = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # not a public name
    return asks_processor is not None and asks_processor()


def describe(compute: Compute) -> str:
    """One phrase for the first line of a run, e.g. "cpu, 2 threads, bf16"."""
    times = f"{compute.group.size} x " if compute.group.size > 1 else ""
    if compute.device.type == "cuda":
        return f"{times}{torch.cuda.get_device_name(compute.device)}, {compute.precision}"
    return f"{times}{compute.device}, {torch.get_num_threads()} threads, {compute.precision}"


def _gpus() -> list[str]:
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def _devices_here() -> str:
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ", ".join(["cpu", *_gpus(), *mps])
