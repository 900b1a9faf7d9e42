"""The tables of a report: the variants of a study by task, and what stands beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from decathlon import COLUMNS, PUBLISHED, SOURCE, TASK_BY_NAME, decathlon_score
from methods.registry import METHODS
from reporting import statistics
from reporting.comparability import departures
from reporting.runs import Run, Variant
from reporting.statistics import Scores, Spread, numbers, over_tasks
from reporting.study import Study

NONE = "–"


@dataclass(frozen=True)
class Table:
    """`header` and `rows` of equal lengths; the first column names the rows.

    `words`: the columns, counted from 0, that hold words and not numbers.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)


def shown(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def mean_cell(spread: Spread | None, digits: int) -> str:
    return shown(spread.mean if spread else None, digits)


def cell(spread: Spread | None, digits: int) -> str:
    """Mean ± standard deviation; of one seed the number alone."""
    deviation = f" ± {spread.std:.{digits}f}" if spread and spread.std is not None else ""
    return mean_cell(spread, digits) + deviation


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# Accuracy.


def test_table(study: Study) -> Table:
    """Accuracy on test of what was scored; with published rows if comparable."""
    scores = statistics.test_scores(study)
    if departures(study):
        return accuracy_table("Accuracy on test, %", scores)
    ours = accuracy_table("Accuracy on test, %, beside published rows", scores, "S")
    theirs = [[f"{row[0]} (published)", NONE, NONE, *row[1:]] for row in published_table().rows]
    return Table(ours.caption, ours.header, [*ours.rows, *theirs])


def accuracy_table(caption: str, scores: Mapping[Variant, Scores], points: str = "") -> Table:
    means = mean_columns(scores)
    tasks = list(means.values())[-1]
    points = points or f"points of {counted(len(tasks), 'task')} (not S)"
    show = dict.fromkeys(tasks, cell)
    show[SOURCE.name] = mean_cell  # one network, whatever the number of seeds

    def score(accuracies: Sequence[float]) -> float:
        return decathlon_score(dict(zip(tasks, accuracies, strict=True)))

    rows = [
        [
            variant.title,
            number_of_seeds(found),
            *(cell(over_tasks(found, of), 2) for of in means.values()),
            cell(over_tasks(found, tasks, score), 0),
            *(show[task](over_tasks(found, [task]), 2) for task in tasks),
        ]
        for variant, found in scores.items()
    ]
    return Table(caption, ["method", "seeds", *means, points, *tasks], rows)


def mean_columns(scores: Mapping[Variant, Scores]) -> dict[str, list[str]]:
    """The means of an accuracy table, by header: the tasks that each is taken over."""
    tasks = [task for task in COLUMNS if any(found.get(task) for found in scores.values())]
    targets = [task for task in tasks if task != SOURCE.name]
    shared = statistics.shared_tasks(scores.values())
    columns = {}
    if 2 <= len(shared) < len(tasks):
        columns[f"mean of {len(shared)} shared tasks"] = shared
    if targets != tasks:
        columns[f"mean of {counted(len(targets), 'target')}"] = targets
    return {**columns, f"mean of {counted(len(tasks), 'task')}": tasks}


def number_of_seeds(scores: Scores) -> str:
    """Of a variant over the tasks that it has: "3", or "1–3" where they differ."""
    counts = {len(found) for task, found in scores.items() if found and task != SOURCE.name}
    return "–".join(str(count) for count in sorted({min(counts), max(counts)}))


def published_table() -> Table:
    rows = [
        [
            row.method,
            shown(row.mean, 2),
            row.shown_score,
            *(shown(row.accuracies.get(task), 2) for task in COLUMNS),
        ]
        for row in PUBLISHED
    ]
    caption = "Published (test accuracy, official data, 72/64 px)"
    return Table(caption, ["method", f"mean of {len(COLUMNS)} tasks", "S", *COLUMNS], rows)


# Decisions and cost.


def decision_tables(study: Study) -> list[Table]:
    """Numbers of fine-tuned blocks, and of different rows of decisions; [] if no image decides.

    Only of variants whose decisions are learnt or drawn; not of one decision told for all blocks.
    """
    chosen = [variant for variant in study.variants if variant.policy in ("", "sample")]
    deciding = [variant for variant in chosen if any(numbers(study, variant, "blocks").values())]
    if not deciding:
        return []
    (num_blocks,) = {run.num_blocks for run in study.runs} - {None}

    def blocks(variant: Variant, task: str) -> str:
        return cell(over_tasks(numbers(study, variant, "blocks"), [task]), 1)

    def policies(variant: Variant, task: str) -> str:
        distinct = over_tasks(numbers(study, variant, "distinct"), [task])
        images = over_tasks(numbers(study, variant, "images"), [task])
        return f"{cell(distinct, 0)} of {mean_cell(images, 0)}" if distinct else NONE

    shown = {f"Fine-tuned blocks per val image, of {num_blocks}": blocks}
    shown["Distinct policies, of val images"] = policies
    return [
        Table(
            caption,
            ["method", *study.tasks],
            [[row.title, *(text(row, task) for task in study.tasks)] for row in deciding],
        )
        for caption, text in shown.items()
    ]


def cost_table(study: Study) -> Table:
    """A row a method: parameters stored for all tasks, compute per image, training time."""
    source = study.source and study.source.cost["parameters"]
    rows = []
    for variant in study.methods:
        stored = statistics.total_stored(study, variant, study.tasks)
        relative = stored.mean / source if stored and source else None
        compute = [numbers(study, variant, part) for part in ("network", "policy network")]
        macs = [mean_cell(over_tasks(part, study.tasks), 3) for part in compute]
        minutes = over_tasks(numbers(study, variant, "minutes"), study.tasks, sum)
        cells = [mean_cell(stored, 2), shown(relative, 2), *macs, mean_cell(minutes, 1)]
        rows.append([variant.title, *cells])
    header = ["method", "stored, M", "stored, × source", "GMAC, network", "GMAC, policy network"]
    return Table("Cost over all tasks", [*header, "training, minutes"], rows)


# Settings.


def tasks_table(study: Study) -> Table:
    """What differs between tasks, the same for all methods."""
    rows = []
    for task in study.tasks:
        run = next(run for run in study.runs if run.task == task)
        milestones = ", ".join(map(str, run.settings.milestones)) or "never"
        cells = [run.num_classes, TASK_BY_NAME[task].num_classes, run.settings.epochs, milestones]
        cells += [run.settings.batch_size, f"{run.settings.weight_decay:g}"]
        rows.append([task, *map(str, cells)])
    header = ["task", "classes", "official", "epochs", "rates drop after", "batch", "weight decay"]
    return Table("Settings of tasks", header, rows)


def methods_table(study: Study) -> Table:
    """What differs between methods, and between a method's tasks."""
    columns: dict[str, Callable[[Run], str]] = {
        "learning rate": lambda run: f"{run.settings.lr:g}",
        "of the policy network": lambda run: (
            f"{run.settings.lr_agent:g}" if METHODS[run.method].has_policy_network else NONE
        ),
        "method's own": _options,
        "precision": lambda run: run.settings.precision,
        "seeds": lambda run: str(run.settings.seed),
    }
    rows = []
    for variant in study.methods:
        runs = [run for task in study.tasks for run in study.of(variant, task)]
        rows.append([variant.title, *(_of_most(runs, text) for text in columns.values())])
    return Table("Settings of methods", ["method", *columns], rows, words=range(6))


def _options(run: Run) -> str:
    names = METHODS[run.method].options
    return ", ".join(f"{name} {getattr(run.settings, name):g}" for name in names) or NONE


def _of_most(runs: Sequence[Run], text: Callable[[Run], str]) -> str:
    """The text of most tasks, and the others with their tasks: "0.1; 0.01 (dtd)"."""
    tasks_of: dict[str, list[str]] = {}
    for task in dict.fromkeys(run.task for run in runs):
        found = dict.fromkeys(text(run) for run in runs if run.task == task)
        tasks_of.setdefault(", ".join(found), []).append(task)
    most, *others = sorted(tasks_of, key=lambda value: -len(tasks_of[value]))
    return "; ".join([most, *(f"{value} ({', '.join(tasks_of[value])})" for value in others)])
