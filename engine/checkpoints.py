"""Checkpoints: one safetensors file each, written whole or not at all.

    tensors    weights.NAME, as in the method's state dict; momenta.NAME, of each trained parameter
               (AdamW's: momenta.exp_avg.NAME, exp_avg_sq, step); sums.NAME, of an epoch left in
               the middle (see EpochSums in engine/step.py)
    metadata   "spottune": all else that a Checkpoint holds, as JSON
               "sha256": over this text and all tensors, since safetensors notices no flipped bits

Such a file holds no code, and its sizes are checked before any memory is taken. The checkpoint
before the last one is kept beside it as checkpoint.previous.safetensors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from decathlon import TASK_BY_NAME
from engine.records import RECORDED
from engine.settings import RESNET26, Settings
from methods.registry import BUILDERS, build_method
from models.resnet26 import resnet26
from runtime.errors import SpotTuneError, brief
from runtime.files import keep_copy, write_whole
from runtime.progress import say
from weights.malformed import MALFORMED
from weights.tensor_file import as_bytes, from_bytes

FORMAT = "spottune-decathlon-3"
SLOTS = {  # what an optimiser keeps of each parameter
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"),
}
DTYPES = (torch.float32, torch.int64)
LISTS = ("_share", "_per_image", "_recall")  # endings of the names of a record's lists
REMOVE = "Remove it to train the task again"


def checkpoint_file(ckpdir: Path, task: str) -> Path:
    """Where the checkpoint of a task lies."""
    return ckpdir / task / "checkpoint.safetensors"


def previous_file(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_suffix(".previous.safetensors")


def best_file(path: Path) -> Path:
    """Where --keep best keeps the epoch with the best val accuracy of the run at `path`."""
    return path.with_suffix(".best.safetensors")


def compact_file(ckpdir: Path, task: str) -> Path:
    """Where Global-k leaves a network with one copy of each block."""
    return ckpdir / task / "compact.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A task after some epochs: all that is needed to continue or to predict."""

    task: str
    kind: str  # of method, see methods/registry.py
    categories: list[int] | list[str]  # by label: category ids, or the names of folders
    settings: Settings
    weights: Mapping[str, Tensor]  # of the method: networks and policy network
    momenta: Mapping[str, Tensor]  # what the optimisers keep: see SLOTS
    history: list[dict]  # one record per epoch
    unfinished: Mapping[str, Tensor | float] | None = None  # sums of an epoch left in the middle

    def save(self, path: Path, is_best: bool = False) -> None:
        """Put the checkpoint in the place of `path`, whole or not at all; keep the one before.

        Where it `is_best`, in that of the best one too, and there first: after a kill in between
        the epoch is made again.
        """
        unfinished = self.unfinished or {}
        sums = {name: value for name, value in unfinished.items() if isinstance(value, Tensor)}
        rest = {
            "format": FORMAT,
            "task": self.task,
            "kind": self.kind,
            "categories": self.categories,
            "settings": self.settings.as_plain(),
            "history": self.history,
            "unfinished": {name: unfinished[name] for name in unfinished if name not in sums},
        }
        parts = {"weights": self.weights, "momenta": self.momenta, "sums": sums}
        tensors = {f"{part}.{name}": parts[part][name] for part in parts for name in parts[part]}
        whole = as_bytes(json.dumps(rest), tensors)
        if is_best:
            write_whole(best_file(path), whole)
        if path.exists():
            keep_copy(path, previous_file(path))
        write_whole(path, whole)

    @classmethod
    def latest(cls, path: Path) -> "Latest | None":
        """The checkpoint to continue from, or None if there is none yet. Only reads.

        If it is damaged, the one before. Raises SpotTuneError if that one is missing or damaged
        too, or if an earlier version has left a checkpoint there.
        """
        before = previous_file(path)
        if not path.exists() and not before.exists():
            _refuse_earlier_version(path)
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

        Raises SpotTuneError, ending in `advice`, for a file that is missing, damaged, or not one
        of ours.
        """
        if not path.is_file():
            _refuse_earlier_version(path)
            raise SpotTuneError(f"{path}: no such checkpoint. Train the task with main.py")
        try:
            return _parsed(path.read_bytes())
        except MALFORMED as error:
            raise SpotTuneError(
                f"{path}: not a readable checkpoint ({brief(error)}): damaged, or not one of this "
                f"project. {advice}"
            ) from error

    def network(self, path: Path) -> nn.Module:
        """The method that the checkpoint describes, with its weights.

        It is built on the meta device first, without memory: a small file may claim a width whose
        blocks take gigabytes. Raises SpotTuneError if a weight is missing or has another shape.
        """
        with torch.device("meta"):
            self.load_into(self._untrained(), path)
        method = self._untrained()
        self.load_into(method, path)
        return method

    def _untrained(self) -> nn.Module:
        settings, num_classes = self.settings, len(self.categories)
        if settings.backbone == RESNET26:
            net = resnet26(num_classes, settings.width)
        else:
            from weights.backbone_weights import NONE, load_backbone  # a slow import

            net, _ = load_backbone(settings.backbone, num_classes, NONE, settings.crop)
        return build_method(self.kind, net, settings.width, settings.options, settings.branches)

    def load_into(self, method: nn.Module, path: Path) -> None:
        """Copy the weights into `method` by name; SpotTuneError unless all of them fit."""
        on_meta = next(method.parameters()).is_meta  # which has no memory to copy into
        try:
            method.load_state_dict(dict(self.weights), assign=on_meta)
        except RuntimeError as error:
            reason = brief(" ".join(str(error).split()), 160)
            raise SpotTuneError(
                f"{path}: its weights do not fit the {self.kind} network that it describes "
                f"({reason}). {REMOVE}"
            ) from error

    def load_momenta(self, method: nn.Module, optimizers: Sequence, path: Path) -> None:
        """Hand the optimisers their momenta; SpotTuneError unless they train just these parameters.

        Rates and decays are not in the checkpoint: they are those of the run's settings.
        """
        names = {parameter: name for name, parameter in method.named_parameters()}
        trained = {
            _key(slot, names[parameter]): (slot, parameter, optimizer)
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            for slot in SLOTS[type(optimizer)]
        }
        shapes = {
            key: torch.Size() if slot == "step" else parameter.shape
            for key, (slot, parameter, _) in trained.items()
        }
        if shapes != {key: momentum.shape for key, momentum in self.momenta.items()}:
            raise SpotTuneError(
                f"{path}: its momenta are not those of the parameters that the {self.kind} method "
                f"trains. {REMOVE}"
            )
        for key, (slot, parameter, optimizer) in trained.items():
            if slot == "step":
                device = parameter.device if optimizer.defaults["fused"] else "cpu"
                value = self.momenta[key].to(device, copy=True)
            else:  # in the parameter's memory layout: fused updates pair numbers by position
                value = torch.empty_like(parameter).copy_(self.momenta[key])
            optimizer.state[parameter][slot] = value


def momenta_of(method: nn.Module, optimizers: Sequence) -> dict[str, Tensor]:
    """What the optimisers keep of each parameter that has made a step, by the parameters' names."""
    names = {parameter: name for name, parameter in method.named_parameters()}
    return {
        _key(slot, names[parameter]): state[slot]
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for slot in SLOTS[type(optimizer)]
    }


def _key(slot: str, name: str) -> str:
    """E.g. "net.head.linear.weight" for SGD's momentum, "exp_avg.net.head.linear.weight"."""
    return name if slot == "momentum_buffer" else f"{slot}.{name}"


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
        """Put the one before in the place of a damaged one, with a message.

        For the process that holds the folder. The damaged one stays, as
        checkpoint.damaged.safetensors.
        """
        if not self.damage:
            return
        say(f"{self.damage}. Continuing from the one before, {self.where.name}")
        if self.path.exists():
            keep_copy(self.path, self.path.with_suffix(".damaged.safetensors"))
        keep_copy(self.where, self.path)  # in one step, so that readers always find a file


def _refuse_earlier_version(path: Path) -> None:
    """Raise SpotTuneError if there is a checkpoint in the format of an earlier version."""
    earlier = path.with_suffix(".pt")
    if earlier.is_file():
        raise SpotTuneError(
            f"{earlier}: was written by an earlier version and cannot be continued. Give "
            f"another --ckpdir, or remove the file to train the task again"
        )


def _parsed(data: bytes) -> Checkpoint:
    """Raises one of MALFORMED unless the data are a whole checkpoint of this project."""
    text, tensors = from_bytes(data)
    if text is None:
        raise ValueError("main.py did not write it")
    rest = json.loads(text)
    if rest.pop("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    rest["settings"] = Settings.from_plain(rest["settings"])
    _check_types(rest)
    parts = {"weights": {}, "momenta": {}, "sums": {}}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite, or not of {' or '.join(map(str, DTYPES))}")
        part, _, own_name = name.partition(".")
        parts[part][own_name] = tensor
    rest["unfinished"] = {**rest["unfinished"], **parts.pop("sums")} or None
    return Checkpoint(**rest, **parts)


def _check_types(rest: Mapping) -> None:
    """Raise an error if a field does not have the type that its users expect."""
    is_decathlon = rest["settings"].backbone == RESNET26
    is_named = rest["task"] in TASK_BY_NAME if is_decathlon else type(rest["task"]) is str
    if not is_named or rest["kind"] not in BUILDERS:
        raise ValueError("its task or its kind of method is unknown")
    if {*map(type, rest["categories"])} != {int if is_decathlon else str}:
        raise TypeError("its categories are no list of whole numbers, or of names of own classes")
    if type(rest["history"]) is not list:
        raise TypeError("its history is no list")
    first = 1 if rest["settings"].epochs else 0  # epoch 0 evaluates weights from a file
    for number, record in enumerate(rest["history"], start=first):
        if RECORDED.keys() - record.keys() or record["epoch"] != number:
            raise ValueError(f"its record of epoch {number} lacks fields, or is of another epoch")
        for name, value in record.items():
            if name != "val_policies" and not _is_figure(name, value):  # which only reports read
                raise TypeError(f"{brief(name)} in its record of epoch {number} is no number")


def _is_figure(name: str, value: object) -> bool:
    """Whether a field of a record is None, a number, or a list of these, as its name says."""
    if value is None or name.endswith(LISTS) != (type(value) is list):
        return value is None
    values = value if type(value) is list else [value]
    return all(
        each is None or type(each) in (float, bool) or type(each) is int and abs(each) < 2**63
        for each in values
    )
