"""One run's records, read from its folder and checked: whatever they hold, nothing is run.

variant  a method, its k where it has one, its way to decide at test time, and its backbone where
         a study has several: a row of a table
run      one training of a method on a task with a seed; its records serve all ways to decide
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from decathlon import SOURCE, TASK_BY_NAME
from engine.settings import RESNET26, Settings
from gumbel_softmax import POLICIES
from methods.registry import METHODS, SOURCE_KIND
from runtime.errors import MISFITS, SpotTuneError, brief

SCORES = "score_test.json"  # in a --ckpdir: what score.py --split test --json wrote
POLICY_TITLES = {
    "sample": "sampled",
    "finetuned": "all fine-tuned at test",
    "kept": "all kept at test",
}


@dataclass(frozen=True)
class Variant:
    """`k` is 0 where the method has none, `policy` "" for the method's own at test time.

    `backbone` is "" where a study has one only.
    """

    method: str
    k: int = 0
    policy: str = ""
    backbone: str = ""

    @property
    def title(self) -> str:
        title = METHODS[self.method].title.replace("-k", f"-{self.k}")
        title = f"{title} of {self.backbone}" if self.backbone else title
        return f"{title}, {POLICY_TITLES[self.policy]}" if self.policy else title

    @property
    def slug(self) -> str:
        """A part of a file's name, the same for all policies."""
        name = f"{self.method}{self.k or ''}"
        return f"{name}_{file_name(self.backbone)}" if self.backbone else name

    @property
    def order(self) -> tuple[str, int, int, int]:
        """As methods and policies stand in their lists, for each backbone."""
        places = list(METHODS).index(self.method), self.k, ("", *POLICIES).index(self.policy)
        return self.backbone, *places


@dataclass(frozen=True)
class Run:
    """What one run left in its folder; an unfinished one has the defaults."""

    folder: Path
    name: str  # of the folder, as the page shows it
    task: str
    method: str
    num_classes: int
    settings: Settings
    classes: Sequence[str] | None = None  # by label; of own pictures
    row_backbone: str = ""  # as in Variant
    # By epoch: epoch, train_loss, val_accuracy in percent, seconds of training; None if missing.
    history: Sequence[Mapping[str, float | None]] = ()
    # What does not depend on the policy: training time in minutes; millions of parameters, and of
    # them those "stored" for the task besides the source network; 10^9 multiply-accumulates of
    # predicting one image, by "network" and "policy network".
    cost: Mapping[str, float] = field(default_factory=dict)
    # After the last epoch, by policy as in Variant: accuracy in percent; where images decide, over
    # B blocks: "block shares", B: the share of "images" that fine-tunes each; "count shares",
    # B + 1: the share that fine-tunes 0, 1, ... of them; "blocks", the mean number; number of
    # "distinct" policies. Of own pictures: "balanced accuracy" in percent; "recalls" in percent, by
    # label, None where val has no picture; of two classes "auc".
    tested: Mapping[str, Mapping] = field(default_factory=dict)
    machine: str = ""
    commit: str = ""
    test: Mapping | None = None  # accuracy in percent and number of images, from score.py

    @property
    def variant(self) -> Variant:
        return Variant(self.method, self.settings.k, backbone=self.row_backbone)

    @property
    def is_own(self) -> bool:
        """Whether it is of own pictures, and not of the Decathlon."""
        return self.settings.backbone != RESNET26

    @property
    def scored_variant(self) -> Variant:
        """Under the run's --policy, with which its test images are taken to be answered."""
        return replace(self.variant, policy=policy_key(self.method, self.settings.policy))

    @property
    def is_finished(self) -> bool:
        return len(self.history) >= self.settings.epochs

    @property
    def num_blocks(self) -> int | None:
        """None where no image decides."""
        found = [tested.get("block shares") for tested in self.tested.values()]
        return len(found[0]) if found and found[0] else None

    def setting(self, name: str) -> Any:
        """A setting, or what else was recorded under that name; None or "" where it was not."""
        return getattr(self if hasattr(self, name) else self.settings, name)


def file_name(text: str) -> str:
    """`text` as a part of a file's name in links: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def policy_key(method: str, policy: str) -> str:
    """A policy as in Variant: "" for the method's own, and for methods without decisions.

    Raises ValueError for a policy that the method does not have.
    """
    own = METHODS[method].policies if method in METHODS else ()  # the source has no row
    if own and policy not in own:
        raise ValueError(f"{method} does not decide by {brief(policy)}")
    return policy if policy in own[1:] else ""


# Reading.


def read_run(folder: Path, name: str) -> Run:
    """The records in one run's folder; SpotTuneError, naming the file, where they are damaged."""
    with opened(folder / "arguments.json") as found:
        task, method, classes = found.pop("task"), found.pop("method"), found.pop("classes", None)
        num_classes, settings = number(found.pop("num_classes")), Settings.from_plain(found)
        run = Run(folder, name, task, method, num_classes, settings, classes)
        _check_named(run)
        policy_key(method, settings.policy)
    history, tested, path = [], {}, folder / "records.jsonl"
    if path.exists():
        with opened(path) as records:
            history = [_epoch(record) for record in records]
            if history and len(history) >= settings.epochs:
                policies = records[-1].get("val_policies", {settings.policy: records[-1]})
                tested = {policy_key(method, p): _tested(fields) for p, fields in policies.items()}
                recalls = [each["recalls"] for each in tested.values() if "recalls" in each]
                if any(len(each) != num_classes for each in recalls):
                    raise ValueError(f"recalls of other than {num_classes} classes")
    run = replace(run, history=history, tested=tested)
    if not run.is_finished:
        return run
    with opened(folder / "cost.json") as found:
        cost = {
            "minutes": sum(epoch["seconds"] or 0.0 for epoch in history) / 60,
            "parameters": number(found["parameters"]) / 1e6,
            "stored": number(found["stored_parameters"]) / 1e6,
            "network": number(found["macs_per_image"]["network"]) / 1e9,
            "policy network": number(found["macs_per_image"]["policy_network"]) / 1e9,
        }
    with opened(folder / "environment.json") as found:
        threads, torch = number(found["threads"]), found["packages"]["torch"]
        machine = (
            f"{found['device_name']} ({found['device']}), {threads} thread{'s'[: threads != 1]}, "
            f"{found['precision']}, torch {torch}"
        )
        commit = str(found["commit"] or "not recorded")
    test = None if run.is_own else _test_scores(folder.parent / SCORES).get(task)
    return replace(run, cost=cost, machine=machine, commit=commit, test=test)


def _check_named(run: Run) -> None:
    """Raise ValueError for a task, method, backbone or class that no run can have."""
    methods = [SOURCE_KIND] if run.task == SOURCE.name and not run.is_own else METHODS
    if type(run.task) is not str or run.method not in methods:
        raise ValueError(f"task {brief(run.task)} with method {brief(run.method)}")
    if not run.is_own and run.task not in TASK_BY_NAME:
        raise ValueError(f"task {brief(run.task)} is not of the Decathlon")
    if not re.fullmatch(r"(timm:)?[\w.-]{1,80}", run.settings.backbone, flags=re.ASCII):
        raise ValueError(f"backbone {brief(run.settings.backbone)}")
    if run.is_own and len({name for name in run.classes if type(name) is str}) != run.num_classes:
        raise ValueError(f"expected the names of {brief(run.num_classes)} classes")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file's JSON, of a .jsonl a list; SpotTuneError if what it holds fails in the block."""
    with intact(path):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":  # as one list, so that an error tells the line
            text = "[" + text.strip().replace("\n", ",\n") + "]"
        yield json.loads(text)


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """SpotTuneError if a run's file is missing, or if what it holds fails in the block."""
    if not path.is_file():
        raise SpotTuneError(f"{path}: no such file; a finished run leaves one")
    try:
        yield
    except MISFITS as error:
        raise SpotTuneError(
            f"{path}: damaged, or not written by a run ({type(error).__name__}: {brief(error)})"
            f"; copy it again or leave the run out"
        ) from error


def check_decisions(rows: Collection[str]) -> None:
    """Raise ValueError unless each row has a 0 or 1 for each of the same number of blocks."""
    if len(set(map(len, rows))) != 1 or not set("".join(rows)) <= {"0", "1"}:
        raise ValueError("rows of 0 and 1 of one length were expected")


def number(value: object) -> float:
    """`value` if it is a finite number; else ValueError."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{brief(value)} where a number was expected")
    return value


def _epoch(record: Mapping) -> dict[str, float | None]:
    found = {name: record.get(name) for name in ("train_loss", "val_accuracy", "seconds")}
    found = {name: None if value is None else number(value) for name, value in found.items()}
    return {"epoch": number(record["epoch"]), **found}


def _tested(record: Mapping) -> dict:
    found = {"accuracy": number(record["val_accuracy"])}
    if "val_balanced_accuracy" in record:
        found["balanced accuracy"] = number(record["val_balanced_accuracy"])
        recalls = record["val_class_recall"]
        found["recalls"] = [None if recall is None else number(recall) for recall in recalls]
    if "val_auc" in record:
        found["auc"] = number(record["val_auc"])
    shares = [number(share) for share in record["val_fine_tuned_share"]]
    counts = [number(count) for count in record["val_blocks_per_image"]]
    if not shares:
        return found
    if len(counts) != len(shares) + 1:
        raise ValueError(f"{len(shares)} shares of blocks with {len(counts)} counts of images")
    return found | {
        "block shares": shares,
        "count shares": [count / sum(counts) for count in counts],
        "images": sum(counts),
        "blocks": sum(shares),
        "distinct": number(record["val_distinct_policies"]),
    }


def _test_scores(path: Path) -> dict[str, Mapping]:
    """Test accuracies by task, of the tasks that were answered; none without a file."""
    if not path.exists():
        return {}
    with opened(path) as found:
        if found["split"] != "test":
            raise ValueError(f"scores of {brief(found['split'])}, not of score.py --split test")
        return {
            task: {name: number(scored[name]) for name in ("accuracy", "images")}
            for task, scored in found["tasks"].items()
            if scored.get("missing") != scored["images"]
        }
