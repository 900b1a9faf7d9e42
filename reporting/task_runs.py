"""One run's records, read from its folder and checked: whatever they hold, nothing is run.

row    a method, its k where it reads one, and its way to decide at test time
run    one row's training on one task with one seed; it serves all ways to decide
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from decathlon import SOURCE, TASK_BY_NAME
from engine.arguments import NUM_BLOCKS
from engine.records import RECORDED
from engine.settings import Settings
from gumbel_softmax import POLICIES
from methods.registry import METHODS, SOURCE_KIND
from runtime.errors import SpotTuneError

SCORES = "score_test.json"  # in a --ckpdir: what score.py --split test --json wrote
HOW = {
    "sample": "sampled",
    "finetuned": "all fine-tuned at test",
    "kept": "all kept at test",
}
LARGEST_NUMBER = 1e15
Types = tuple[type, ...]
NUMBER, COUNT = (int, float), (int,)
# The fields that tables and figures are made from, besides those that every record has: of one that
# tells of training, of the last one, and of the other files.
TRAINED = {"train_loss": NUMBER, "train_accuracy": NUMBER, "seconds": NUMBER}
TESTED = {
    "val_accuracy": NUMBER,
    "val_fine_tuned_share": (list,),
    "val_blocks_per_image": (list,),
    "val_distinct_policies": COUNT,
}
COSTS = {"parameters": COUNT, "stored_parameters": COUNT, "macs_per_image": (dict,)}
MACS = {"network": COUNT, "policy_network": COUNT}
ENVIRONMENT = {
    "device": (str,),
    "device_name": (str,),
    "precision": (str,),
    "threads": COUNT,
    "packages": (dict,),
    "commit": (str, type(None)),
}
SCORED = {"accuracy": NUMBER, "images": COUNT}


@dataclass(frozen=True)
class Row:
    """A line of the report; `policy` is "" for the method's own way to decide at test time."""

    method: str
    k: int = 0  # 0 where the method reads none
    policy: str = ""

    @property
    def title(self) -> str:
        title = METHODS[self.method].title
        if self.has_k:
            title = title.replace("-k", f"-{self.k}")
        return f"{title}, {HOW[self.policy]}" if self.policy else title

    @property
    def has_k(self) -> bool:
        return "k" in METHODS[self.method].options

    @property
    def main(self) -> "Row":
        """The row of the same training under the method's own way to decide."""
        return Row(self.method, self.k)

    @property
    def slug(self) -> str:
        """A part of a file's name, the same for all ways to decide."""
        return f"{self.method}{self.k}" if self.has_k else self.method

    @property
    def order(self) -> tuple[int, int, int]:
        """As methods and policies stand in their lists."""
        policy = POLICIES.index(self.policy) + 1 if self.policy else 0
        return list(METHODS).index(self.method), self.k, policy


@dataclass(frozen=True)
class TaskRun:
    """What one run left in its folder; of one that is not finished, without the last three."""

    folder: Path
    name: str  # of the folder, from the one that was asked for on: for the page
    task: str
    method: str
    num_classes: int | None  # None where it was not recorded
    settings: Settings
    history: list[dict]
    cost: Mapping = field(default_factory=dict)
    environment: Mapping = field(default_factory=dict)
    test: Mapping | None = None  # accuracy in percent, and number of images

    @property
    def row(self) -> Row:
        """The main one."""
        return Row(self.method, self.settings.k)

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def is_finished(self) -> bool:
        return len(self.history) >= self.settings.epochs

    @property
    def recorded_its_own_way(self) -> bool:
        """Whether the val figures of all epochs are of the method's own way to decide."""
        return own_policies(self.method)[:1] in ((), (self.settings.policy,))

    @cached_property
    def tested(self) -> dict[str, Mapping]:
        """By policy as in Row: the val fields of the last record."""
        last = self.history[-1]
        if not own_policies(self.method):
            return {"": last}
        own = own_policies(self.method)[0]
        found = last.get("val_policies", {self.settings.policy: last})
        return {"" if policy == own else policy: found[policy] for policy in found}

    def setting(self, name: str) -> object:
        """One of the settings, or the number of classes; None if it was not recorded."""
        if name == "data_sha256":
            return self.settings.data_sha256 or None
        return self.num_classes if name == "num_classes" else getattr(self.settings, name)


def own_policies(method: str) -> tuple[str, ...]:
    """The ways in which a method's images can decide at test time, its own first."""
    return METHODS[method].policies if method in METHODS else ()


def read_run(folder: Path, name: str) -> TaskRun:
    """The records in one run's folder; SpotTuneError, naming the file, where they are damaged."""
    task, method, num_classes, settings = _read_arguments(folder / "arguments.json")
    history = _read_history(folder / "records.jsonl", settings)
    run = TaskRun(folder, name, task, method, num_classes, settings, history)
    if not run.is_finished:
        return run
    if task != SOURCE.name or history:
        _check_tested(run, folder / "records.jsonl")
    return replace(
        run,
        cost=_read_cost(folder / "cost.json"),
        environment=read_object(folder / "environment.json", ENVIRONMENT),
        test=_read_scores(folder.parent / SCORES).get(task),
    )


def _read_arguments(path: Path) -> tuple[str, str, int | None, Settings]:
    arguments = read_object(path, {"task": (str,), "method": (str,)})
    task, method = arguments.pop("task"), arguments.pop("method")
    num_classes = arguments.pop("num_classes", None)  # missing in runs of before it was recorded
    try:
        settings = Settings.from_plain(arguments)
    except TypeError as error:
        raise SpotTuneError(f"{path}: not the settings of a run of main.py ({error})") from error
    known = method in METHODS if task != SOURCE.name else method == SOURCE_KIND
    if task not in TASK_BY_NAME or not known or type(num_classes) not in (int, type(None)):
        raise SpotTuneError(
            f"{path}: task {task}, method {method}, {num_classes} classes; expected those of a run "
            f"of main.py"
        )
    if own_policies(method) and settings.policy not in own_policies(method):
        raise SpotTuneError(f"{path}: {method} does not decide by {settings.policy}")
    return task, method, num_classes, settings


def _read_history(path: Path, settings: Settings) -> list[dict]:
    """The records, in order; none where no epoch was finished.

    Epoch 0 is the evaluation of weights from a file.
    """
    lines = _text(path).splitlines() if path.exists() else []
    history = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        record = _parsed(line, where)
        check_fields(record, RECORDED | (TRAINED if settings.epochs else {}), where)
        if record["epoch"] != (number if settings.epochs else 0):
            raise SpotTuneError(f"{where}: epoch {record['epoch']}; expected one line an epoch")
        history.append(record)
    return history


def _check_tested(run: TaskRun, path: Path) -> None:
    """The last record has its figures on val, under all of its test-time policies."""
    last, where = run.history[-1], f"{path}, last line"
    policies = last.get("val_policies", {})
    if type(policies) is not dict or not policies.keys() <= set(own_policies(run.method)):
        raise SpotTuneError(f"{where}: val_policies holds none or others than the method's own")
    for tested in (last, *policies.values()):
        check_fields(tested, TESTED, where)
        shares, images = tested["val_fine_tuned_share"], tested["val_blocks_per_image"]
        lengths = (len(shares), len(images))
        numbers = all(_is_a(value, NUMBER) for value in shares + images)
        if not numbers or lengths not in ((0, 0), (NUM_BLOCKS, NUM_BLOCKS + 1)):
            raise SpotTuneError(f"{where}: expected shares of {NUM_BLOCKS} blocks, as numbers")


def _read_cost(path: Path) -> dict:
    cost = read_object(path, COSTS)
    check_fields(cost["macs_per_image"], MACS, f"{path}, macs_per_image")
    return cost


def _read_scores(path: Path) -> dict[str, dict]:
    """Test accuracies by task, as score.py --json wrote them; none where the file is not there."""
    if not path.exists():
        return {}
    scores = read_object(path, {"split": (str,), "tasks": (dict,)})
    if scores["split"] != "test":
        raise SpotTuneError(
            f"{path}: scores of the {scores['split']} split; expected those of "
            f"score.py --split test --json"
        )
    for task, scored in scores["tasks"].items():
        check_fields(scored, SCORED, f"{path}, {task}")
    return scores["tasks"]


def read_object(path: Path, needed: Mapping[str, Types]) -> dict:
    """The JSON object of a file that has these fields; SpotTuneError if there is none such."""
    if not path.is_file():
        raise SpotTuneError(f"{path}: no such file; main.py leaves one with each run")
    content = _parsed(_text(path), path)
    check_fields(content, needed, path)
    return content


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _parsed(text: str, where: object) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpotTuneError(f"{where}: not readable JSON ({error}); it may be cut short") from error


def check_fields(content: object, needed: Mapping[str, Types], where: object) -> None:
    """Raise SpotTuneError unless `content` has all of `needed`, each of one of its types."""
    if type(content) is not dict:
        raise SpotTuneError(f"{where}: expected a JSON object, as main.py writes it")
    for name, types in needed.items():
        if not _is_a(content.get(name), types):
            raise SpotTuneError(f"{where}: {name} is missing, or not what main.py writes there")


def _is_a(value: object, types: Types) -> bool:
    """Whether `value` is of one of the types, and if it is a number, finite and not absurd."""
    return type(value) in types and (
        type(value) not in NUMBER or -LARGEST_NUMBER < value < LARGEST_NUMBER
    )
