"""Figures of a study's rows: means and standard deviations over seeds, sums over tasks.

A mean, a score or a sum over tasks is made where all of the tasks are there, per seed first and
then over seeds. Accuracies in percent, parameters in millions, times in seconds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from decathlon import SOURCE, decathlon_score
from reporting.study import Study
from reporting.task_runs import Row, TaskRun

BySeed = dict[int, float]
Scores = dict[str, BySeed]  # task -> seed -> figure


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, sample standard deviation (n - 1; None for one seed), number of seeds."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None of no values."""
        values = list(values)
        if not values:
            return None
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def by_seed(runs: Sequence[TaskRun], figure: Callable[[TaskRun], float | None]) -> BySeed:
    """A figure of each run that has it."""
    found = {run.seed: figure(run) for run in runs}
    return {seed: value for seed, value in found.items() if value is not None}


def val_scores(study: Study, row: Row) -> Scores:
    """Accuracy on val of the last epoch, the shared source network's included."""

    def accuracy(run: TaskRun) -> float | None:
        tested = run.tested.get(row.policy)
        return tested and tested["val_accuracy"]

    scores = {task: by_seed(study.of(row, task), accuracy) for task in study.tasks}
    source = study.evaluated_sources[:1]
    return _shared(scores, source[0].history[-1]["val_accuracy"] if source else None)


def test_scores(study: Study, row: Row) -> Scores:
    """Accuracy on test, where score.py's figures lie with the runs; of main rows only.

    The answers are those of submit_test.py under the method's own way to decide.
    """
    scores = {
        task: by_seed(study.of(row, task), lambda run: run.test and run.test["accuracy"])
        for task in study.tasks
    }
    source = next((run for run in study.sources if run.test), None)
    return _shared(scores, source.test["accuracy"] if source else None)


def _shared(scores: Scores, source_accuracy: float | None) -> Scores:
    """With the source's figure for every seed of the row: it is one network."""
    if source_accuracy is None:
        return scores
    seeds = sorted({seed for found in scores.values() for seed in found})
    return {SOURCE.name: dict.fromkeys(seeds, source_accuracy), **scores}


def over_tasks(
    scores: Scores, tasks: Sequence[str], combine: Callable[[Mapping[str, float]], float]
) -> Spread | None:
    """`combine` of each seed's figures by task, over the seeds that have all `tasks`."""
    if not all(scores.get(task) for task in tasks):
        return None
    seeds = set.intersection(*(set(scores[task]) for task in tasks))
    return Spread.of(
        combine({task: scores[task][seed] for task in tasks}) for seed in sorted(seeds)
    )


def mean_over_tasks(scores: Scores, tasks: Sequence[str]) -> Spread | None:
    return over_tasks(scores, tasks, lambda figures: fmean(figures.values()))


def points_over_tasks(scores: Scores, tasks: Sequence[str]) -> Spread | None:
    """Sum of the points: S, if these are the ten tasks' test sets."""
    return over_tasks(scores, tasks, decathlon_score)


def sum_over_tasks(scores: Scores, tasks: Sequence[str]) -> Spread | None:
    return over_tasks(scores, tasks, lambda figures: sum(figures.values()))


def of_cost(study: Study, row: Row, figure: Callable[[Mapping], float]) -> Scores:
    """A figure of cost.json by task and seed."""
    return {
        task: by_seed(study.of(row, task), lambda run: figure(run.cost)) for task in study.tasks
    }


def stored_millions(study: Study, row: Row) -> Scores:
    """Parameters that a task adds to the source network."""
    return of_cost(study, row, lambda cost: cost["stored_parameters"] / 1e6)


def source_millions(study: Study) -> float | None:
    """Parameters of the source network; None where it left no record."""
    return study.source and study.source.cost["parameters"] / 1e6


def total_stored(study: Study, row: Row) -> Spread | None:
    """Millions of parameters for all tasks together, the source network once."""
    source = source_millions(study) or 0.0
    return over_tasks(
        stored_millions(study, row),
        study.tasks,
        lambda figures: source + sum(figures.values()),
    )


def giga_macs(study: Study, row: Row, part: str) -> Scores:
    """Billions of multiply-accumulates per image of a part: "network" or "policy_network"."""
    return of_cost(study, row, lambda cost: cost["macs_per_image"][part] / 1e9)


def training_seconds(study: Study, row: Row) -> Scores:
    """Of all epochs, without evaluation."""
    return {
        task: by_seed(
            study.of(row, task), lambda run: sum(record["seconds"] for record in run.history)
        )
        for task in study.tasks
    }


def decision_figures(study: Study, row: Row, field: str) -> dict[str, list]:
    """A figure of the last record about decisions, by task and then by seed in order.

    `field`: "val_fine_tuned_share", "val_blocks_per_image" or "val_distinct_policies". Without the
    tasks that have none.
    """
    found = {
        task: [
            run.tested[row.policy][field]
            for run in study.of(row, task)
            if row.policy in run.tested and run.tested[row.policy]["val_fine_tuned_share"]
        ]
        for task in study.tasks
    }
    return {task: figures for task, figures in found.items() if figures}


def mean_lists(lists: Sequence[Sequence[float]]) -> list[float]:
    """Position by position."""
    return [fmean(values) for values in zip(*lists, strict=True)]


def mean_share(study: Study, row: Row) -> dict[str, list[float]]:
    """By task: per block the share of val images that fine-tune it, mean over seeds."""
    found = decision_figures(study, row, "val_fine_tuned_share")
    return {task: mean_lists(shares) for task, shares in found.items()}


def mean_blocks_per_image(study: Study, row: Row) -> dict[str, list[float]]:
    """By task: the share of val images that fine-tune 0, 1, ... blocks, mean over seeds."""
    found = decision_figures(study, row, "val_blocks_per_image")
    return {
        task: mean_lists([[count / sum(counts) for count in counts] for counts in figures])
        for task, figures in found.items()
    }
