"""Small good files of every kind that the project reads, for the fuzz test to damage.

Networks of width 1, a task of two classes with a handful of images of 16 x 16 pixels. All are made
from fixed seeds, so that a case can be repeated.
"""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from released_files import (
    THREE_EIGHTHS,
    module,
    ordered_dict_of,
    parameter,
    raw_array,
    saved,
    storage,
    tensor,
    with_mean,
)

from decathlon import TASK_BY_NAME
from engine.checkpoints import Checkpoint, content_sha256
from engine.settings import Settings
from engine.step import EpochSums
from image_cache.packed import DataFolders
from imdbfolder_coco import load_images
from methods.optimizers import Rates
from methods.registry import build_method
from models.resnet26 import resnet26
from sample_data import make
from weights.source_weights import our_name

WIDTH, SIDE = 1, 16
TASK = TASK_BY_NAME["svhn"]
SETTINGS = Settings(
    epochs=2,
    milestones=(1,),
    lr=0.1,
    lr_agent=0.01,
    weight_decay=5e-4,
    batch_size=8,
    resize=SIDE,
    crop=SIDE,
    width=WIDTH,
    seed=0,
    train_split="train",
    policy="argmax",
    precision="fp32",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    source_sha256="",
)
CATEGORIES = [TASK.first_category_id, TASK.first_category_id + 1]
SPLIT = "val"


def make_data(folder: Path) -> DataFolders:
    """The made-up Decathlon that annotations, packed files and answers belong to."""
    sample = make.Settings(classes=2, images_per_class=6, side=SIDE, seed=0)
    make.make_sample(folder, sample)
    root = folder / "decathlon-1.0"
    return DataFolders(root, root / "annotations", root / "packed")


# Pretrained files.


def released_weights() -> dict[str, torch.Tensor]:
    """A network's weights under the names of the authors' file."""
    torch.manual_seed(0)
    ours = resnet26(len(CATEGORIES), WIDTH).state_dict()
    layers = ["pre_layers_conv.conv", "pre_layers_conv.bns.0", "end_bns.0.0", "linears.0"]
    for stage in (1, 2, 3):
        for block in range(4):
            parts = ("conv1.conv", "conv1.bns.0", "conv2.1.conv", "conv2.1.bns.0")
            layers += [f"layer{stage}.{block}.{part}" for part in parts]
    tensors = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = (f"{layer}.{name}" for layer in layers for name in tensors)
    return {name: ours[our_name(name)] for name in names if our_name(name) in ours}


def described(key: str, value: torch.Tensor) -> bytes:
    kind = {torch.float32: "FloatStorage", torch.int64: "LongStorage"}[value.dtype]
    of = storage(key, kind, size=value.numel())
    return tensor(of, shape=value.shape, strides=value.stride())


def nested(parts: dict[str, bytes]) -> bytes:
    """The pickled module whose tensors have these names; running statistics are buffers."""
    own = {name: part for name, part in parts.items() if "." not in name}
    children: dict[str, dict[str, bytes]] = {}
    for name, part in parts.items():
        child, dot, rest = name.partition(".")
        if dot:
            children.setdefault(child, {})[rest] = part
    buffers = {n: p for n, p in own.items() if n.startswith("running") or n.startswith("num")}
    parameters = {n: parameter(p) for n, p in own.items() if n not in buffers}
    return module(
        "conv_task",
        ordered_dict_of(**parameters),
        ordered_dict_of(**buffers),
        ordered_dict_of(**{name: nested(inside) for name, inside in children.items()}),
    )


def pretrained_files() -> list[bytes]:
    """As the authors wrote it, as PyTorch writes the format today, and one of a single weight."""
    weights = released_weights()
    parts = {name: described(str(i), value) for i, (name, value) in enumerate(weights.items())}
    raw = b"".join(
        value.numel().to_bytes(8, "little") + value.numpy().tobytes() for value in weights.values()
    )
    keys = [str(i) for i in range(len(weights))]
    return [saved(nested(parts), keys=keys, raw=raw), old_format({"net": weights}), saved()]


def old_format(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


# Mean and std, checkpoints.


def mean_std_files() -> list[bytes]:
    """With numpy arrays as Python 3 writes them in each protocol, and as Python 2 did."""
    arrays = {"dtdmean": np.full(3, 0.5), "dtdstd": list(np.full(3, 0.25, np.float32))}
    today = [pickle.dumps(arrays, protocol) for protocol in range(6)]
    return [*today, with_mean(raw_array(THREE_EIGHTHS))]


def record(epoch: int, shares: list[float] | None) -> dict:
    """What a history keeps of an epoch."""
    return {
        "epoch": epoch,
        "lr": 0.1,
        "lr_agent": 0.01,
        "train_loss": 0.5,
        "train_accuracy": 75.0,
        "train_fine_tuned_share": shares,
        "val_loss": 0.5,
        "val_accuracy": 75.0,
        "val_fine_tuned_share": shares,
        "val_blocks_per_image": [0] * 6 + [4] + [0] * 6 if shares else [],
        "val_seen_in_training": False,
        "val_policies": {"argmax": {"val_loss": 0.5, "val_fine_tuned_share": shares}},
        "seconds": 0.1,
        "images_per_second": 120.0,
    }


def untrained(kind: str, num_classes: int) -> torch.nn.Module:
    return build_method(kind, resnet26(num_classes, WIDTH), WIDTH, SETTINGS.options)


def checkpoint(kind: str, task: str, categories: list[int]) -> Checkpoint:
    """A network inside its second epoch, after a step, so that its optimisers have momenta."""
    torch.manual_seed(0)
    method = untrained(kind, len(categories))
    optimizers = method.optimizers(Rates(SETTINGS.lr, SETTINGS.lr_agent, SETTINGS.weight_decay))
    for parameter_ in method.parameters():
        if parameter_.requires_grad:
            parameter_.grad = torch.full_like(parameter_, 0.1)
    for optimizer in optimizers:
        optimizer.step()
    shares = [0.5] * 12 if kind == "spottune" else None
    sums = EpochSums.zero(method.num_blocks, torch.device("cpu"))
    return Checkpoint(
        task=task,
        kind=kind,
        categories=categories,
        settings=SETTINGS,
        weights=method.state_dict(),
        optimizers=[optimizer.state_dict() for optimizer in optimizers],
        history=[record(1, shares)],
        unfinished={**sums.state_dict(), "steps": 1},
    )


def checkpoint_bytes(kind: str, folder: Path) -> bytes:
    path = folder / f"{kind}.pt"
    task = TASK.name if kind == "spottune" else "imagenet12"
    checkpoint(kind, task, CATEGORIES).save(path)
    return path.read_bytes()


def saved_now(value: dict) -> bytes:
    """As a checkpoint is saved; with a checksum that is right, where the value can have one."""
    content = {key: each for key, each in value.items() if key not in ("format", "sha256")}
    with suppress(TypeError, RuntimeError, RecursionError):  # RuntimeError: no numbers, or too many
        value = {**value, "sha256": content_sha256(content)}
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def odd_values() -> list[object]:
    """What a checkpoint may hold that PyTorch can save, and no task's training leaves."""
    around = []
    around.append(around)
    tensors = [
        torch.zeros(1).expand(2**40),
        torch.zeros(4).as_strided((2**24,), (0,)),
        torch.empty(3, device="meta"),
        torch.eye(2).to_sparse(),
        torch.full((4,), torch.nan),
        torch.ones(4, dtype=torch.float64),
        torch.ones(4, dtype=torch.bool),
        torch.ones(4, dtype=torch.bfloat16),
        torch.ones(4, dtype=torch.complex64),
        torch.zeros(0),
        torch.zeros(()),
        torch.nn.Parameter(torch.ones(4)),
        torch.ones(4, 4).t(),
    ]
    return [*tensors, around, {1, 2}, 1j, b"bytes", bytearray(3), torch.float32, OrderedDict(a=1)]


# Annotations, packed images, answers, images.


def annotation_files(folders: DataFolders) -> list[bytes]:
    """With and without labels."""
    names = (f"{TASK.name}_{SPLIT}.json", f"{TASK.name}_test_stripped.json")
    return [(folders.imdbdir / name).read_bytes() for name in names]


def packed_file(folders: DataFolders) -> bytes:
    load_images(TASK, [SPLIT], folders, SIDE)
    return (folders.cachedir / f"{TASK.name}_{SPLIT}_{SIDE}.pack").read_bytes()


def answer_file(folders: DataFolders) -> bytes:
    content = json.loads((folders.imdbdir / f"{TASK.name}_{SPLIT}.json").read_bytes())
    answers = [
        {"image_id": label["image_id"], "category_id": label["category_id"]}
        for label in content["annotations"]
    ]
    return json.dumps(answers).encode()


def zipped(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def image_files() -> list[bytes]:
    """One of each format that is read."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    files = []
    for image_format in ("JPEG", "PNG", "BMP", "WEBP"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, image_format)
        files.append(stream.getvalue())
    return files
