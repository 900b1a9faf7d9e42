"""The tables of a report: rows of a study by task, and what stands beside them."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from decathlon import COLUMNS, PUBLISHED, SOURCE, TASK_BY_NAME
from engine.arguments import NUM_BLOCKS
from methods.registry import METHODS
from reporting.comparability import test_departures
from reporting.pages import Table
from reporting.results import (
    Scores,
    Spread,
    decision_figures,
    giga_macs,
    mean_over_tasks,
    points_over_tasks,
    source_millions,
    stored_millions,
    sum_over_tasks,
    test_scores,
    total_stored,
    training_seconds,
    val_scores,
)
from reporting.study import Study
from reporting.task_runs import Row, TaskRun

NONE = "–"
POINTS = "points of {} tasks (not S)"
PUBLISHED_CAPTION = "Published (test accuracy, official data, 72/64 px)"


def cell(spread: Spread | None, digits: int) -> str:
    """Mean ± standard deviation; of one seed the figure alone."""
    if spread is None:
        return NONE
    mean = f"{spread.mean:.{digits}f}"
    return mean if spread.std is None else f"{mean} ± {spread.std:.{digits}f}"


def mean_cell(spread: Spread | None, digits: int) -> str:
    return NONE if spread is None else f"{spread.mean:.{digits}f}"


def by_task(scores: Scores, tasks: Sequence[str], show: Callable[[Spread | None], str]) -> list:
    """A cell for each task."""
    return [show(Spread.of(scores.get(task, {}).values())) for task in tasks]


def number_of_seeds(scores: Scores) -> str:
    """Of a row over the tasks that it has: "3", or "1–3" where they differ."""
    counts = [len(found) for task, found in scores.items() if found and task != SOURCE.name]
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}–{high}"


# Accuracy.


def val_table(study: Study) -> Table:
    """Accuracy on val of all rows."""
    scores = {row: val_scores(study, row) for row in study.rows}
    shared = [SOURCE.name] if study.evaluated_sources else []
    return _accuracy_table(study, "Accuracy on val, %", scores, shared, POINTS)


def test_table(study: Study) -> Table | None:
    """Accuracy on test of the main rows that were scored; with published rows if comparable."""
    scores = {row: test_scores(study, row) for row in study.methods}
    scores = {row: found for row, found in scores.items() if any(found[t] for t in study.tasks)}
    if not scores:
        return None
    shared = [SOURCE.name] if any(SOURCE.name in found for found in scores.values()) else []
    if test_departures(study):
        return _accuracy_table(study, "Accuracy on test, %", scores, shared, POINTS)
    ours = _accuracy_table(study, "Accuracy on test, %, beside published rows", scores, shared, "S")
    theirs = [[f"{row[0]} (published)", NONE, *row[1:]] for row in published_table().rows]
    return Table(ours.caption, ours.header, [*ours.rows, *theirs])


def _accuracy_table(
    study: Study, caption: str, scores: Mapping[Row, Scores], shared: Sequence[str], points: str
) -> Table:
    tasks = [task for task in COLUMNS if task in (*shared, *study.tasks)]
    rows = [
        [
            row.title,
            number_of_seeds(found),
            cell(mean_over_tasks(found, tasks), 2),
            cell(points_over_tasks(found, tasks), 0),
            *by_task(_of_one_source(found), tasks, lambda spread: cell(spread, 2)),
        ]
        for row, found in scores.items()
    ]
    return Table(caption, ["method", "seeds", "mean", points.format(len(tasks)), *tasks], rows)


def _of_one_source(scores: Scores) -> Scores:
    """With the source's figure once: it is one network's, whatever the number of seeds."""
    shared = list(scores.get(SOURCE.name, {}).items())
    return {**scores, SOURCE.name: dict(shared[:1])}


def published_table() -> Table:
    rows = [
        [
            row.method,
            f"{fmean(row.accuracies.values()):.2f}",
            str(row.score),
            *(f"{row.accuracies[task]:.2f}" for task in COLUMNS),
        ]
        for row in PUBLISHED
    ]
    return Table(PUBLISHED_CAPTION, ["method", "mean", "S", *COLUMNS], rows)


# Decisions.


def deciding_rows(study: Study) -> list[Row]:
    """The rows whose decisions are learnt or drawn; not those that are told one for all blocks."""
    return [
        row
        for row in study.rows
        if row.policy in ("", "sample") and decision_figures(study, row, "val_fine_tuned_share")
    ]


def blocks_table(study: Study) -> Table:
    """How many of the blocks an image fine-tunes, in the mean over the val images."""
    rows = []
    for row in deciding_rows(study):
        shares = decision_figures(study, row, "val_fine_tuned_share")
        means = {task: [sum(share) for share in found] for task, found in shares.items()}
        cells = [cell(Spread.of(means.get(task, [])), 1) for task in study.tasks]
        rows.append([row.title, *cells])
    return Table(
        f"Fine-tuned blocks of a val image, of {NUM_BLOCKS}", ["method", *study.tasks], rows
    )


def policies_table(study: Study) -> Table:
    """How many different rows of decisions the val images of a task have."""
    rows = []
    for row in deciding_rows(study):
        numbers = decision_figures(study, row, "val_distinct_policies")
        images = decision_figures(study, row, "val_blocks_per_image")
        cells = [
            f"{cell(Spread.of(numbers[task]), 0)} of {sum(images[task][0])}"
            if task in numbers
            else NONE
            for task in study.tasks
        ]
        rows.append([row.title, *cells])
    return Table("Distinct policies, of val images", ["method", *study.tasks], rows)


# Cost.


def cost_table(study: Study) -> Table:
    """A line a method: parameters stored for all tasks, compute per image, time of training."""
    source = source_millions(study)
    unit, seconds_per_unit = time_unit(study)
    rows = []
    for row in study.methods:
        stored = total_stored(study, row)
        network, policy_network = (
            mean_over_tasks(giga_macs(study, row, part), study.tasks)
            for part in ("network", "policy_network")
        )
        time = sum_over_tasks(training_seconds(study, row), study.tasks)
        rows.append(
            [
                row.title,
                mean_cell(stored, 2),
                f"{stored.mean / source:.2f}" if stored and source else NONE,
                mean_cell(network, 3),
                mean_cell(policy_network, 3),
                NONE if time is None else f"{time.mean / seconds_per_unit:.1f}",
            ]
        )
    header = ["method", "stored, M", "stored, × source", "GMAC, network", "GMAC, policy network"]
    return Table("Cost over all tasks", [*header, f"training, {unit}"], rows)


def stored_table(study: Study) -> Table:
    """Parameters that each task adds."""
    return _cost_by_task(
        study,
        "Parameters that a task adds to the source network, M",
        lambda row: by_task(
            stored_millions(study, row), study.tasks, lambda spread: mean_cell(spread, 2)
        ),
    )


def compute_table(study: Study) -> Table:
    """Multiply-accumulates of one predicted image, the policy network's apart."""

    def cells(row: Row) -> list[str]:
        parts = [
            by_task(giga_macs(study, row, part), study.tasks, lambda spread: mean_cell(spread, 3))
            for part in ("network", "policy_network")
        ]
        return [
            network if float(policy.replace(NONE, "0")) == 0 else f"{network} + {policy}"
            for network, policy in zip(*parts, strict=True)
        ]

    return _cost_by_task(study, "Compute per image, GMAC: network + policy network", cells)


def time_table(study: Study) -> Table:
    """How long training took, evaluation apart."""
    unit, seconds_per_unit = time_unit(study)

    def show(spread: Spread | None) -> str:
        return NONE if spread is None else f"{spread.mean / seconds_per_unit:.1f}"

    return _cost_by_task(
        study,
        f"Time of training, {unit}",
        lambda row: by_task(training_seconds(study, row), study.tasks, show),
    )


def _cost_by_task(study: Study, caption: str, cells: Callable[[Row], list[str]]) -> Table:
    rows = [[row.title, *cells(row)] for row in study.methods]
    return Table(caption, ["method", *study.tasks], rows)


def time_unit(study: Study) -> tuple[str, int]:
    """The same for all times of a report: name, and seconds in it."""
    longest = max(
        (
            seconds
            for row in study.methods
            for found in training_seconds(study, row).values()
            for seconds in found.values()
        ),
        default=0,
    )
    if longest < 120:
        return "seconds", 1
    return ("minutes", 60) if longest < 120 * 60 else ("hours", 3600)


# Settings.


def tasks_table(study: Study) -> Table:
    """What differs between tasks, the same for all methods."""
    rows = []
    for task in study.tasks:
        runs = [run for run in study.runs if run.task == task]
        settings = runs[0].settings
        classes = next((run.num_classes for run in runs if run.num_classes is not None), NONE)
        rows.append(
            [
                task,
                str(classes),
                str(TASK_BY_NAME[task].num_classes),
                str(settings.epochs),
                ", ".join(str(epoch) for epoch in settings.milestones) or "never",
                str(settings.batch_size),
                f"{settings.weight_decay:g}",
            ]
        )
    header = ["task", "classes", "official", "epochs", "rates drop after", "batch", "weight decay"]
    return Table("Settings of tasks", header, rows)


def methods_table(study: Study) -> Table:
    """What differs between methods, and between a method's tasks."""
    rows = []
    for row in study.methods:
        runs = [run for task in study.tasks for run in study.of(row, task)]
        policy_rate = METHODS[row.method].has_policy_network
        rows.append(
            [
                row.title,
                _by_task(runs, lambda run: f"{run.settings.lr:g}"),
                _by_task(runs, lambda run: f"{run.settings.lr_agent:g}") if policy_rate else NONE,
                _by_task(runs, _options) or NONE,
                _by_task(runs, lambda run: run.settings.precision),
                _by_task(runs, lambda run: str(run.seed)),
            ]
        )
    header = [
        "method",
        "learning rate",
        "of the policy network",
        "method's own",
        "precision",
        "seeds",
    ]
    return Table("Settings of methods", header, rows, words=range(1, 6))


def _options(run: TaskRun) -> str:
    names = METHODS[run.method].options
    return ", ".join(f"{name} {getattr(run.settings, name):g}" for name in names)


def _by_task(runs: Sequence[TaskRun], figure: Callable[[TaskRun], str]) -> str:
    """The figure of most tasks, and the others with their tasks: "0.1; 0.01 (dtd)"."""
    tasks_of: dict[str, list[str]] = {}
    for task in dict.fromkeys(run.task for run in runs):
        found = dict.fromkeys(figure(run) for run in runs if run.task == task)
        tasks_of.setdefault(", ".join(found), []).append(task)
    most, *others = sorted(tasks_of, key=lambda value: -len(tasks_of[value]))
    return "; ".join([most, *(f"{value} ({', '.join(tasks_of[value])})" for value in others)])
