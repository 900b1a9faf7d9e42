"""One task from data to its last epoch, whatever its pictures and its network are."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import nn

from engine.checkpoints import checkpoint_file
from engine.fit import Pace, fit
from engine.run import Run
from engine.settings import Recipe, Settings
from image_cache.batches import TaskData
from methods.registry import build_method
from runtime.devices import Compute
from runtime.locks import claimed
from runtime.randomness import seeded_globally


class Problem(Protocol):
    """What is to be learnt, and the network to start from: a Decathlon task, or a folder."""

    @property
    def name(self) -> str: ...

    def settings(self, kind: str, recipe: Recipe) -> Settings: ...

    def data(self, settings: Settings) -> tuple[TaskData, TaskData, list]:
        """What to train on, val, and the categories by label."""

    def network(self, num_classes: int, settings: Settings) -> nn.Module:
        """With its initial weights; those that are random come from PyTorch's generator."""


class Place(Protocol):
    """Where a run leaves its files, where it computes, and how often it is saved."""

    ckpdir: Path
    compute: Compute
    pace: Pace


def train(problem: Problem, kind: str, recipe: Recipe, place: Place) -> list[dict]:
    """Load data, initialise and train one task, whose folder this process holds; its history.

    `kind` of method: see methods/registry.py.
    """
    group = place.compute.group
    folder = checkpoint_file(place.ckpdir, problem.name).parent
    with claimed(folder) if group.is_first else nullcontext():
        settings = problem.settings(kind, recipe)
        with group.first_before_others():
            train_data, val_data, categories = problem.data(settings)
        with seeded_globally(settings.seed, problem.name):
            net = problem.network(len(categories), settings)
            method = build_method(kind, net, settings.width, settings.options, settings.branches)
        settings = replace(
            settings,
            data_sha256=train_data.images.sha256(),
            val_sha256=val_data.images.sha256(),
        )
        run = Run(place.ckpdir, problem.name, kind, categories, settings)
        return fit(run, method, train_data, val_data, place.compute, place.pace)
