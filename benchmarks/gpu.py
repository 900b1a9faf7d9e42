"""All that is to be measured on a GPU, in a few minutes: `make gpu` writes docs/gpu_measured.md.

Each part has a process of its own, and all of them a limit of time together: what is left when it
is used up is listed as not measured. Peak memory is that of a form alone.
"""

import gc
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import wall_clock
from benchmarks.made_up import MEAN_STD, TASK, load_task, write_task
from benchmarks.measuring import (
    RATES,
    Sizes,
    evaluation_step,
    in_own_process,
    median_seconds,
    new_method,
    peak_mib,
    seconds_of,
    training_step,
)
from decathlon import TARGETS
from engine.records import environment
from engine.step import EpochSums, Trainer, train_epoch
from image_cache.batches import TaskData
from image_cache.orders import View
from models.resnet26 import PAPER_WIDTH
from runtime.cli import positive_float, positive_int
from runtime.devices import Compute, choose_compute, describe
from runtime.errors import SpotTuneError, brief
from runtime.progress import say

FORMS = ("plain", "fast", "compiled")  # "fast": what main.py computes; "compiled": with --compile
TITLES = {"plain": "plain form", "fast": "here", "compiled": "here, --compile"}
ROUND_SECONDS = 3.0  # of timing a form
LEAST_SECONDS = 5.0  # that a part needs at least, to be started
# What the project wants to reach on an H100: training against the plain form, images/s at the crop,
# and minutes of nine targets.
GOALS = {"ratio": 4.0, "images/s": 20_000.0, "minutes": 25.0}


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, cuda:1 ...; cpu: a dry run, with small sizes")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the fast form")
    add("--batch_size", type=positive_int, default=128, help="images per step")
    add("--crop", type=positive_int, default=64, help="side of training crops")
    add("--resize", type=positive_int, default=72, help="side of whole images")
    add("--width", type=positive_int, default=PAPER_WIDTH, help="channels of the stem")
    add("--num_images", type=positive_int, default=4096, help="made-up JPEGs of an epoch")
    add("--seconds", type=positive_float, default=300.0, help="limit of all parts together")
    add("--skip_compile", action="store_true", help="leave --compile out, as without a compiler")


def measure(
    device: str, precision: str, batch_size: int, crop: int, resize: int, width: int,
    num_images: int, seconds: float, skip_compile: bool,
) -> dict:  # fmt: skip
    """Images per second, peak MiB and seconds of the first step, by part and form."""
    start = time.monotonic()
    compute = choose_compute(device, precision)
    where = (device, precision)
    small, whole, tall = (
        Sizes(batch_size, height, across, width)
        for height, across in ((crop, crop), (resize, resize), (2 * resize, resize))
    )
    figures = {
        "device": describe(compute),
        "plain form": plain_precision(compute.device),
        "machine": {**environment(compute), **card(compute.device)},
        "batch_size": batch_size,
        "parts": {},
    }

    def part(name: str, form: str, function: Callable, *arguments: object) -> None:
        row = figures["parts"].setdefault(name, {})
        left = start + seconds - time.monotonic()
        say(f"{name}, {TITLES.get(form, form)} ({max(left, 0):.0f} s are left)")
        try:
            if left < LEAST_SECONDS:
                raise SpotTuneError(f"the {seconds:.0f} s were used up")
            row |= in_own_process(function, *arguments, timeout=left)
        except (RuntimeError, SpotTuneError) as error:  # the other parts are worth having
            row[form] = {"not measured": brief(str(error).partition("\n")[0], 150)}

    eager, compiled = ("plain", "fast"), ("compiled",)

    def training(sizes: Sizes, forms: tuple[str, ...]) -> None:
        name = f"training, {sizes.height} x {sizes.width}"
        part(name, forms[-1], steps, "training", forms, sizes, *where)

    evaluation = f"evaluation, {resize} x {resize}"
    with tempfile.TemporaryDirectory() as folder:  # what matters most comes first
        training(small, eager)
        part(evaluation, "fast", steps, "evaluation", eager, whole, *where)
        write_task(Path(folder), TASK, "train", num_images, resize)
        part("whole epoch", "on the card", epochs, Path(folder), small, resize, *where)
        for sizes in (whole, tall):
            training(sizes, eager)
        for sizes in () if skip_compile else (small, tall, whole):
            training(sizes, compiled)
    train_rate = figures["parts"]["whole epoch"].get("on the card", {}).get("images/s")
    eval_rate = figures["parts"][evaluation].get("fast", {}).get("images/s")
    if train_rate and eval_rate:
        said = f"measured on {figures['device']}; START and LAUNCH of wall_clock.py are assumed"
        figures["Decathlon"] = wall_clock.measure(train_rate, eval_rate, said)
    return figures | {"seconds": time.monotonic() - start}


def plain_precision(device: torch.device) -> str:
    """What the plain form computes in: convolutions in TF32 are PyTorch's default on a GPU."""
    has_tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return f"fp32 {'with' if has_tf32 else 'without'} TF32"


def card(device: torch.device) -> dict[str, object]:
    """Memory, capability and versions of a GPU's software; nothing for a CPU."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "GiB": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def steps(
    kind: str, forms: tuple[str, ...], sizes: Sizes, device: str, precision: str
) -> dict[str, dict]:
    """Training or evaluation steps of each form, one form after another."""
    build = {"training": training_step, "evaluation": evaluation_step}[kind]
    figures = {}
    for form in forms:
        compute = choose_compute(device, precision, compiled=form == "compiled")
        step = build("plain" if form == "plain" else "fast", sizes, compute)
        figures[form] = timed(step, sizes.batch_size, compute)
        del step
    return figures


def epochs(folder: Path, sizes: Sizes, resize: int, device: str, precision: str) -> dict[str, dict]:
    """Whole epochs of training as a run has them, with the pixels on the card or on the host."""
    compute = choose_compute(device, precision)
    images = load_task(folder, TASK, resize)
    view = View(sizes.height, sizes.width, random=True)
    figures = {}
    for form, share in (("on the card", 1.0), ("on the host", 0.0)):
        data = TaskData(images, view, MEAN_STD, compute.device, share)
        if share:
            data.put_on_device()
        method = new_method(sizes, compute.device)
        trainer = Trainer(method, RATES, compute, sizes.batch_size)

        def epoch(data=data, trainer=trainer) -> None:
            sums = EpochSums.zero(trainer.method.num_blocks, compute.device)
            for _ in train_epoch(trainer, data, (0,), "epoch", sums):
                pass

        figures[form] = timed(epoch, len(images), compute, at_once=1)
        del data, method, trainer, epoch
    return figures


def timed(
    run: Callable[[], object], images: int, compute: Compute, at_once: int | None = None
) -> dict[str, float]:
    """Images per second, seconds of the first call, and peak MiB; `run` sees so many images.

    On a GPU ten calls are timed together, so that the host may be ahead of it as in a run.
    """
    device, is_gpu = compute.device, compute.device.type == "cuda"
    gc.collect()
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    first = seconds_of(run, device)
    at_once = at_once or (10 if is_gpu else 1)

    def several() -> None:
        for _ in range(at_once):
            run()

    seconds = seconds_of(several, device)
    rounds = min(max(3, round(ROUND_SECONDS / seconds)), 50)
    seconds = median_seconds({"run": several}, rounds, device)["run"] / at_once
    return {"images/s": images / seconds, "first, s": first, "peak MiB": peak_mib(device)}


def table(figures: dict) -> str:
    """The figures as Markdown."""
    machine, parts = figures["machine"], figures["parts"]
    facts = {**machine["packages"], **machine}
    names = ("torch", "cuda", "cudnn", "GiB", "capability", "python", "commit")
    versions = ", ".join(f"{name} {facts[name]}" for name in names if facts.get(name))
    is_gpu = machine["device"] == "cuda"
    lines = [
        f"# {'Measured on a GPU' if is_gpu else 'A dry run without a GPU'}\n",
        f"{figures['device']}; batches of {figures['batch_size']}. {versions}. Measured in "
        f"{figures['seconds']:.0f} s by `make gpu`.\n",
        f"The plain form computes in {figures['plain form']}. Images per second, and times the "
        f"plain form; peak memory in MiB; seconds of the first step, with compiling:\n",
        "| | form | images/s | ratio | peak MiB | first, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, forms in parts.items():
        for form, row in forms.items():
            title = TITLES.get(form, form)
            if "not measured" in row:
                lines.append(f"| {name} | {title} | not measured: {row['not measured']} | | | |")
                continue
            ratio = ratio_of(forms, form)
            lines.append(
                f"| {name} | {title} | {row['images/s']:,.0f} | "
                f"{f'{ratio:.2f}' if ratio else '–'} | {row['peak MiB']:,.0f} | "
                f"{row['first, s']:.1f} |"
            )
    lines += ["", *goals(figures)]
    if "Decathlon" in figures:
        lines += ["\n## The whole Decathlon\n", wall_clock.table(figures["Decathlon"])]
    return "\n".join(lines)


def ratio_of(forms: dict[str, dict], form: str) -> float | None:
    """Images per second of a form over those of the plain form, if both were measured."""
    plain, own = (forms.get(name, {}).get("images/s") for name in ("plain", form))
    return own / plain if plain and own else None


def goals(figures: dict) -> list[str]:
    """What the project wants to reach, beside what was measured at the training crop."""
    forms = next(iter(figures["parts"].values()))  # the training crop comes first
    rate = forms.get("fast", {}).get("images/s")
    targets = figures.get("Decathlon", {}).get("targets")
    found = {
        "ratio": ratio_of(forms, "fast"),
        "images/s": rate,
        "minutes": sum(targets.values()) / 60 if targets else None,
    }
    lines = ["| | goal on an H100 | measured |", "|---|---|---|"]
    titles = {
        "ratio": "training, times the plain form, at least",
        "images/s": "training, images/s, at least",
        "minutes": f"{len(TARGETS)} targets x {wall_clock.TARGET_EPOCHS} epochs one after another, "
        f"minutes, at most",
    }
    for name, title in titles.items():
        value = "not measured" if found[name] is None else f"{found[name]:,.1f}"
        lines.append(f"| {title} | {GOALS[name]:,.0f} | {value} |")
    return lines
