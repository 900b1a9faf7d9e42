"""The tables of a report: the variants of a study by task, and what stands beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from decathlon import COLUMNS, PUBLISHED, TASK_BY_NAME, decathlon_score
from methods.registry import METHODS
from reporting import statistics
from reporting.answers import Answer
from reporting.comparability import COUNTED, departures
from reporting.runs import Run, Variant
from reporting.statistics import Scores, Spread, numbers, over_tasks
from reporting.study import Study

NONE = "–"
MOST_RECALLS = 20  # classes in a table


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
        return accuracy_table(study, "Accuracy on test, %", scores)
    ours = accuracy_table(study, "Accuracy on test, %, beside published rows", scores, "S")
    theirs = [[f"{row[0]} (published)", NONE, NONE, *row[1:]] for row in published_table().rows]
    return Table(ours.caption, ours.header, [*ours.rows, *theirs])


def accuracy_table(
    study: Study, caption: str, scores: Mapping[Variant, Scores], points: str = "", digits: int = 2
) -> Table:
    """`points`: what those of the Decathlon are called; own pictures have none."""
    means = mean_columns(study, scores)
    tasks = list(means.values())[-1]
    points = points or f"points of {counted(len(tasks), 'task')} (not S)"
    show = dict.fromkeys(tasks, cell)
    show[study.source_task] = mean_cell  # one network, whatever the number of seeds

    def score(accuracies: Sequence[float]) -> float:
        return decathlon_score(dict(zip(tasks, accuracies, strict=True)))

    rows = [
        [
            variant.title,
            number_of_seeds(study, found),
            *(cell(over_tasks(found, of), digits) for of in means.values()),
            *([] if study.is_own else [cell(over_tasks(found, tasks, score), 0)]),
            *(show[task](over_tasks(found, [task]), digits) for task in tasks),
        ]
        for variant, found in scores.items()
    ]
    of_points = [] if study.is_own else [points]
    return Table(caption, ["method", "seeds", *means, *of_points, *tasks], rows)


def mean_columns(study: Study, scores: Mapping[Variant, Scores]) -> dict[str, list[str]]:
    """The means of an accuracy table, by header: the tasks that each is taken over."""
    tasks = [task for task in study.columns if any(found.get(task) for found in scores.values())]
    targets = [task for task in tasks if task != study.source_task]
    shared = statistics.shared_tasks(study, scores.values())
    columns = {}
    if 2 <= len(shared) < len(tasks):
        columns[f"mean of {len(shared)} shared tasks"] = shared
    if targets != tasks:
        columns[f"mean of {counted(len(targets), 'target')}"] = targets
    return {**columns, f"mean of {counted(len(tasks), 'task')}": tasks}


def number_of_seeds(study: Study, scores: Scores) -> str:
    """Of a variant over the tasks that it has: "3", or "1–3" where they differ."""
    counts = {len(found) for task, found in scores.items() if found and task != study.source_task}
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


# Classes and answers of own pictures.


def class_tables(study: Study) -> list[Table]:
    """Balanced accuracy, AUC of tasks with two classes, and the recall of each class."""
    made = []
    names = {"balanced accuracy": ("Balanced accuracy on val, %", 2)}
    names["auc"] = ("Area under the ROC curve on val, from 0 to 1", 3)
    for name, (caption, digits) in names.items():
        scores = {variant: numbers(study, variant, name) for variant in study.variants}
        recorded = {variant: found for variant, found in scores.items() if any(found.values())}
        if recorded:
            made.append(accuracy_table(study, caption, recorded, digits=digits))
    return [*made, *(recall_table(study, task) for task in study.tasks)]


def recall_table(study: Study, task: str) -> Table:
    """A row a class, a column a method; of many classes those that are recognised least."""
    of_methods = {
        variant: statistics.mean_recalls(study, variant, task)
        for variant in study.methods
        if numbers(study, variant, "recalls")[task]
    }
    classes = next(run.classes for run in study.runs if run.task == task)
    rows = list(zip(classes, *of_methods.values(), strict=True))
    caption = f"Recall of each class of {task} on val, %"
    if len(rows) > MOST_RECALLS:
        caption += f": the {MOST_RECALLS} lowest of {len(rows)}"
        known = [row for row in rows if None not in row]
        rows = sorted(known, key=lambda row: (sum(row[1:]), row[0]))[:MOST_RECALLS]
    header = ["class", *(variant.title for variant in of_methods)]
    body = [[str(row[0]), *(shown(recall, 1) for recall in row[1:])] for row in rows]
    return Table(caption, header, body)


def mistakes_table(variant: Variant, mistakes: Mapping[str, Sequence[Answer]]) -> Table:
    """The most confident mistakes by their files' names."""
    rows = [
        [task, answer.file, answer.category, answer.answer, f"{100 * answer.probability:.1f}"]
        for task, answers in mistakes.items()
        for answer in answers
    ]
    caption = f"{variant.title}: the most confident mistakes on val"
    header = ["task", "picture", "class", "answer", "probability, %"]
    return Table(caption, header, rows, words=range(4))


# Decisions and cost.


def decision_tables(study: Study) -> list[Table]:
    """Numbers of fine-tuned blocks, and of different rows of decisions; [] if no image decides.

    Only of variants whose decisions are learnt or drawn; not of one decision told for all blocks.
    """
    chosen = [variant for variant in study.variants if variant.policy in ("", "sample")]
    deciding = [variant for variant in chosen if any(numbers(study, variant, "blocks").values())]
    if not deciding:
        return []
    depths = {variant: num_blocks(study, variant) for variant in deciding}
    one_depth = f", of {max(depths.values())}" if len(set(depths.values())) == 1 else ""

    def blocks(variant: Variant, task: str) -> str:
        found = over_tasks(numbers(study, variant, "blocks"), [task])
        of = "" if one_depth or not found else f" of {depths[variant]}"
        return cell(found, 1) + of

    def policies(variant: Variant, task: str) -> str:
        distinct = over_tasks(numbers(study, variant, "distinct"), [task])
        images = over_tasks(numbers(study, variant, "images"), [task])
        return f"{cell(distinct, 0)} of {mean_cell(images, 0)}" if distinct else NONE

    shown = {f"Fine-tuned blocks per val image{one_depth}": blocks}
    shown["Distinct policies, of val images"] = policies
    return [
        Table(
            caption,
            ["method", *study.tasks],
            [[row.title, *(text(row, task) for task in study.tasks)] for row in deciding],
        )
        for caption, text in shown.items()
    ]


def num_blocks(study: Study, variant: Variant) -> int:
    """Of the network of a variant whose images decide."""
    own = replace(variant, policy="")
    return max(run.num_blocks or 0 for run in study.runs if run.variant == own)


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
        times = [] if study.is_own else [shown(relative, 2)]
        rows.append([variant.title, mean_cell(stored, 2), *times, *macs, mean_cell(minutes, 1)])
    times = [] if study.is_own else ["stored, × source"]
    header = ["method", "stored, M", *times, "GMAC, network", "GMAC, policy network"]
    return Table("Cost over all tasks", [*header, "training, minutes"], rows)


# Settings.


def tasks_table(study: Study) -> Table:
    """What differs between tasks, the same for all methods."""
    columns: dict[str, Callable[[Run], object]] = {"classes": lambda run: run.num_classes}
    if not study.is_own:
        columns["official"] = lambda run: TASK_BY_NAME[run.task].num_classes
    columns |= {
        "epochs": lambda run: run.settings.epochs,
        "rates drop after": lambda run: ", ".join(map(str, run.settings.milestones)) or "never",
        "batch": lambda run: run.settings.batch_size,
    }
    if study.is_own:
        columns |= {
            "resized to": lambda run: run.settings.resize,
            "cropped to": lambda run: run.settings.crop,
            "fit": lambda run: run.settings.fit,
        }
    else:
        columns["weight decay"] = lambda run: f"{run.settings.weight_decay:g}"
    rows = []
    for task in study.tasks:
        run = next(run for run in study.runs if run.task == task)
        rows.append([task, *(str(text(run)) for text in columns.values())])
    return Table("Settings of tasks", ["task", *columns], rows)


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
    if study.is_own:
        columns["weight decay"] = lambda run: f"{run.settings.weight_decay:g}"
    if any(_beyond(run) != NONE for run in study.runs):
        columns["beyond the released recipe"] = _beyond
    rows = []
    for variant in study.methods:
        runs = [run for task in study.tasks for run in study.of(variant, task)]
        rows.append([variant.title, *(_of_most(runs, text) for text in columns.values())])
    return Table("Settings of methods", ["method", *columns], rows, words=range(8))


def _options(run: Run) -> str:
    names = METHODS[run.method].options
    return ", ".join(f"{name} {getattr(run.settings, name):g}" for name in names) or NONE


def _beyond(run: Run) -> str:
    """The settings that the released recipe lacks, where they are used."""
    used = [
        f"{name} {getattr(run.settings, name)}"
        for name, left_out in COUNTED.items()
        if getattr(run.settings, name) != left_out
    ]
    return ", ".join(used) or NONE


def _of_most(runs: Sequence[Run], text: Callable[[Run], str]) -> str:
    """The text of most tasks, and the others with their tasks: "0.1; 0.01 (dtd)"."""
    tasks_of: dict[str, list[str]] = {}
    for task in dict.fromkeys(run.task for run in runs):
        found = dict.fromkeys(text(run) for run in runs if run.task == task)
        tasks_of.setdefault(", ".join(found), []).append(task)
    most, *others = sorted(tasks_of, key=lambda value: -len(tasks_of[value]))
    return "; ".join([most, *(f"{value} ({', '.join(tasks_of[value])})" for value in others)])
