"""Checkpoints: tensors, numbers and strings in a file that is written whole.

Never whole modules, so that renaming a class does not lose a model. `saved_values` reads them: it
runs nothing that a file says, and takes time and memory by the file's length only. Others can read
them with torch.load(weights_only=True). A SHA-256 over all that a checkpoint holds tells a damaged
one; the one before is kept beside it as checkpoint.previous.pt.
"""

import errno
import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.records import RECORDED
from engine.settings import Settings
from methods.registry import build_method
from models.resnet26 import resnet26
from runtime.errors import SpotTuneError, brief
from runtime.files import keep_copy, write_whole
from runtime.progress import say
from weights.safe_pickle import MISFITS, RefusedError
from weights.saved_values import Saved

# What files raise that cannot be read: of a zip that is cut short, or of a newer kind; the last is
# PyTorch's.
UNREADABLE = (*MISFITS, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError)
FORMAT = "spottune-decathlon-2"
LISTS = ("_share", "_per_image")  # ends of the names under which a record keeps lists
LONGEST_NAME = 100  # of a task or a kind of method
REMOVE = "Remove it to train the task again"


def checkpoint_file(ckpdir: Path, task: str) -> Path:
    """Where the checkpoint of a task lies."""
    return ckpdir / task / "checkpoint.pt"


def previous_file(path: Path) -> Path:
    """Where the checkpoint before that at `path` is kept."""
    return path.with_suffix(".previous.pt")


def compact_file(ckpdir: Path, task: str) -> Path:
    """Where Global-k leaves a network with one copy of each block."""
    return ckpdir / task / "compact.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A task after some epochs; all that is needed to go on or to predict."""

    task: str
    kind: str  # of method, see methods.py
    categories: list[int]  # category ids, by label
    settings: Settings
    weights: Mapping[str, Tensor]  # of the method: networks and policy network
    optimizers: list[dict]
    history: list[dict]  # one record an epoch
    unfinished: dict | None = None  # the sums of an epoch left in the middle, see training.py

    def save(self, path: Path) -> None:
        """Put the checkpoint in the place of `path`, whole or not at all; keep the one before."""
        content = {**vars(self), "settings": self.settings.as_plain()}
        content["weights"] = dict(self.weights)
        whole = io.BytesIO()  # torch.save hides the reason when writing to a disk fails
        torch.save({"format": FORMAT, "sha256": content_sha256(content), **content}, whole)
        if path.exists():
            keep_copy(path, previous_file(path))
        write_whole(path, whole.getbuffer())

    @classmethod
    def latest(cls, path: Path) -> "Latest | None":
        """The checkpoint to go on from, None if there is none yet; only reads.

        If it is damaged, the one before. Raises SpotTuneError if that one is missing or damaged
        too.
        """
        before = previous_file(path)
        if not path.exists() and not before.exists():
            return None
        try:
            return Latest(path, cls.load(path))
        except SpotTuneError as error:
            if not before.exists():
                raise
            return Latest(path, cls.load(before), damage=str(error))

    @classmethod
    def load(cls, path: Path, advice: str = REMOVE) -> "Checkpoint":
        """Read a checkpoint of this project onto the CPU.

        Raises SpotTuneError, ending in `advice`, for a file that is missing, cut short, or not one
        of ours.
        """
        content = _read(path, advice)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise SpotTuneError(
                f"{path}: not a checkpoint of this project; expected one that main.py wrote. "
                f"{advice}"
            )
        try:
            if content.pop("sha256", None) != content_sha256(content):
                raise TypeError("its content is not what was written")
            checkpoint = cls(**{**content, "settings": Settings.from_plain(content["settings"])})
            _check_types(checkpoint)
        except (TypeError, KeyError, AttributeError) as error:
            found = brief(error)
            raise SpotTuneError(f"{path}: a damaged checkpoint ({found}). {advice}") from error
        return checkpoint

    def network(self, path: Path) -> nn.Module:
        """The method that the checkpoint describes, with its weights.

        It is built on the meta device first, without memory: a stem alone may claim a width whose
        blocks take gigabytes. Raises SpotTuneError if a weight is missing or has another shape.
        """
        with torch.device("meta"):
            self.load_into(self._untrained(), path)
        method = self._untrained()
        self.load_into(method, path)
        return method

    def _untrained(self) -> nn.Module:
        settings = self.settings
        net = resnet26(len(self.categories), settings.width)
        return build_method(self.kind, net, settings.width, settings.options)

    def load_into(self, method: nn.Module, path: Path) -> None:
        """Copy the weights into `method`, by name, all of them; SpotTuneError if any is amiss."""
        on_meta = next(method.parameters()).is_meta  # where there is nothing to copy into
        try:
            method.load_state_dict(dict(self.weights), assign=on_meta)
        except RuntimeError as error:
            reason = brief(" ".join(str(error).split()), 160)
            raise SpotTuneError(
                f"{path}: its weights do not fit the {self.kind} network that it describes "
                f"({reason}). {REMOVE}"
            ) from error


@dataclass(frozen=True)
class Latest:
    """A task's last checkpoint, or if that one is damaged or gone, the one before."""

    path: Path  # of the last one
    checkpoint: Checkpoint
    damage: str = ""  # what is wrong with the last one

    @property
    def where(self) -> Path:
        """The file that the checkpoint was read from."""
        return previous_file(self.path) if self.damage else self.path

    def repair(self) -> None:
        """Put it in the place of a damaged one, aloud. For the process that holds the folder.

        The damaged one stays, as checkpoint.damaged.pt.
        """
        if not self.damage:
            return
        say(f"{self.damage}. Going on from the one before, {self.where.name}")
        if self.path.exists():
            keep_copy(self.path, self.path.with_suffix(".damaged.pt"))
        keep_copy(self.where, self.path)  # at no moment is there none, for those who only read


def _read(path: Path, advice: str) -> object:
    if not path.is_file():
        raise SpotTuneError(f"{path}: no such checkpoint. Train the task with main.py")
    try:
        return Saved.read(path).value()
    except UNREADABLE as error:
        found = f" ({error})" if isinstance(error, RefusedError) else ""
        raise SpotTuneError(
            f"{path}: not a readable checkpoint{found}; it may be cut short, or not one of ours. "
            f"{advice}"
        ) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a damaged length leads outside the file
            raise
        raise SpotTuneError(f"{path}: a damaged checkpoint. {advice}") from error


def _check_types(checkpoint: Checkpoint) -> None:
    for name, member in (("optimizers", dict), ("history", dict), ("categories", int)):
        values = getattr(checkpoint, name)
        if not isinstance(values, list) or not all(type(value) is member for value in values):
            raise TypeError(f"{name} is not a list of {member.__name__}")
    if not isinstance(checkpoint.unfinished, (dict, type(None))):
        raise TypeError("its unfinished epoch is no dictionary")
    if not checkpoint.categories:
        raise TypeError("it has no categories")
    for name in ("task", "kind"):
        value = getattr(checkpoint, name)
        if type(value) is not str or len(value) > LONGEST_NAME:
            raise TypeError(f"{name} is no name")
    for name, tensor in checkpoint.weights.items():
        if type(name) is not str or not isinstance(tensor, Tensor):
            raise TypeError("weights are not all tensors with names")
    shapes = {name: list(tensor.shape) for name, tensor in checkpoint.weights.items()}
    if shapes.get("net.stem.conv.weight", [0])[0] != checkpoint.settings.width:
        raise TypeError("its weights are not of the width that it names")
    if shapes.get("net.head.linear.bias") != [len(checkpoint.categories)]:
        raise TypeError("its classifier does not have as many classes as it names")
    _check_history(checkpoint)


def _check_history(checkpoint: Checkpoint) -> None:
    """One record an epoch, in order; epoch 0 is the evaluation of weights from a file."""
    first = 0 if checkpoint.settings.epochs == 0 else 1
    for number, record in enumerate(checkpoint.history, start=first):
        missing = RECORDED.keys() - record.keys()
        if missing or record["epoch"] != number:
            raise TypeError(f"its record of epoch {number} lacks {sorted(missing) or 'its number'}")
        for name, types in RECORDED.items():
            if type(record[name]) not in types:
                raise TypeError(f"{name} in its record of epoch {number} is no number")
        _check_figures(record, number)


def _check_figures(record: Mapping[str, object], number: int) -> None:
    """All of a record is numbers, or lists of them; "val_policies" holds a record for each."""
    for name, value in record.items():
        if name == "val_policies" and type(value) is dict:
            for fields in value.values():
                _check_figures(fields, number)
            continue
        values = value if type(value) is list and name.endswith(LISTS) else [value]
        if not all(type(each) in (int, float, bool, type(None)) for each in values):
            raise TypeError(f"{brief(name)} in its record of epoch {number} is no number")


def content_sha256(content: object) -> str:
    """One hash over nested dictionaries and lists of tensors, numbers and strings.

    Raises TypeError for anything else, which has no place in a checkpoint.
    """
    digest = hashlib.sha256()
    _add_to(digest, content)
    return digest.hexdigest()


def _add_to(digest: "hashlib._Hash", value: object) -> None:
    """Types and lengths go in too, so that no two contents look alike."""
    if isinstance(value, Tensor):
        digest.update(f"tensor {tuple(value.shape)} {value.dtype} ".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        digest.update(f"dict {len(value)} ".encode())
        for key, member in value.items():
            _add_to(digest, key)
            _add_to(digest, member)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} {len(value)} ".encode())
        for member in value:
            _add_to(digest, member)
    elif value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        digest.update(f"{type(value).__name__} {len(text)} {text} ".encode())
    else:
        raise TypeError(f"a {type(value).__name__} has no place in a checkpoint")


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """One hash over names, shapes and values: the same weights, the same hash.

    Without num_batches_tracked, which old files lack and nothing depends on.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
