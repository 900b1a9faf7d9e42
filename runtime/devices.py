"""The device and the precision of a run, chosen once and printed."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.distributed import ALONE, Group
from runtime.errors import SpotTuneError

# CUDA graphs, and no kernel chosen by timing it: equal seeds, equal results.
COMPILE_OPTIONS = {"triton.cudagraphs": True, "deterministic": True}


@dataclass(frozen=True)
class Compute:
    """A device and a precision: "fp32", or "bf16" for the convolutions.

    Linear layers, logits, Gumbel noise, softmax and loss are float32 in both.
    """

    device: torch.device
    precision: str
    compiled: bool = False  # training steps through torch.compile with CUDA graphs
    backend: str | Callable = "inductor"  # of torch.compile
    group: Group = ALONE  # the processes that train together

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 if it was chosen, else no autocast."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    def compile(self, function: Callable) -> Callable:
        """`function`, compiled for one batch shape if that was chosen.

        What was compiled before is forgotten: PyTorch gives up after eight variants of one
        function, and the ninth task would train without.
        """
        if not self.compiled:
            return function
        torch.compiler.reset()
        options = COMPILE_OPTIONS if self.backend == "inductor" else None
        return torch.compile(function, backend=self.backend, dynamic=False, options=options)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; the host does not wait for the device."""
    if device.type == "cuda":
        return pinnable(tensor).pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pinnable(tensor: Tensor) -> Tensor:
    """The same values, each in a place of its own: pin_memory refuses expanded tensors."""
    return tensor.contiguous()


def reading(figure: Tensor) -> Callable[[], float]:
    """Start to copy a number to the host; the returned call waits only for work queued so far."""
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

    `jobs` None: one for each visible GPU unless the name chooses one, and no more than tasks. GPUs
    are only counted: the parent must not open any. Raises SpotTuneError if the device is not there.
    """
    gpus = _gpus() if device_name in ("auto", "cuda") else []
    devices = gpus or ["cpu" if device_name == "auto" else device_name]
    count = jobs or min(len(devices), num_tasks)
    if count > 1 and devices[0] not in _gpus():
        choose_compute(devices[0], "fp32")
    return [devices[slot % len(devices)] for slot in range(count)]


def choose_compute(
    device_name: str, precision: str, compiled: bool = False, threads: int | None = None
) -> Compute:
    """`device_name` "auto": a GPU if there is one; `precision` "auto": bf16 where it is fast.

    `threads`: of the CPU; None: PyTorch's choice. Raises SpotTuneError if there is no such device.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device_name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        here = ["cpu", *_gpus(), *(["mps"] if torch.backends.mps.is_available() else [])]
        raise SpotTuneError(
            f"--device {device_name}: not available here ({reason[:120]}); choose one of "
            f"{', '.join(here)}"
        ) from error
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    if device.type == "cuda":  # equal seeds, equal results: no algorithm is chosen by timing
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.cuda.set_device(device.index or 0)  # code that names no GPU must not open cuda:0
    return Compute(device, precision, compiled)


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions; without them bf16 is emulated, and slower."""
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
        name = torch.cuda.get_device_name(compute.device)
        return f"{times}{name}, {on_gpu(compute.precision, _has_fast_bf16(compute.device))}"
    return f"{times}{compute.device}, {torch.get_num_threads()} threads, {compute.precision}"


def on_gpu(precision: str, has_bf16: bool) -> str:
    """The precision, and what a user may not expect of it on this GPU."""
    if precision == "fp32":
        return "fp32 without TF32" if has_bf16 else "fp32 (this GPU has no bf16)"
    return precision if has_bf16 else f"{precision} (emulated and slow on this GPU)"


def _gpus() -> list[str]:
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
