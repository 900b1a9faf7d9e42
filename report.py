"""Write a report of finished runs, as Markdown and as one HTML page, from their records.

    python report.py FOLDER [FOLDER ...] --out DIR

writes DIR/report.md, DIR/report.html and DIR/figures/. The same records give the same bytes. Runs
stand in one table only if they are comparable, and share one with published figures only if they
were tested, and trained, as those were; else the page says in what they differ.
"""

from collections.abc import Sequence

from decathlon import SOURCE
from reporting import tables
from reporting.comparability import departures, test_departures
from reporting.figures import (
    accuracy_figures,
    add_study_arguments,
    decision_figures,
    extremes_figures,
    image_folders,
    seen_in_training,
    write_figures,
)
from reporting.pages import (
    FIGURES,
    Bullets,
    Heading,
    Paragraph,
    Part,
    Picture,
    as_html,
    as_markdown,
)
from reporting.study import Study, read_study
from runtime.cli import Parser
from runtime.errors import run_script
from runtime.files import write_whole
from runtime.progress import say
from score import ABOUT_PUBLISHED

TITLE = "SpotTune on the Visual Decathlon: report"
NOT_S = (
    "Points are those of the Decathlon, with the official E_max: 0 to 1000 a task. S is their sum "
    "over ten official test sets; these sums are not comparable with it."
)


def page(
    study: Study,
    of_accuracy: Sequence[Picture],
    of_decisions: Sequence[Picture],
    remarks: Sequence[str],
) -> list[Part]:
    """All parts of the report; `remarks` tell which images could not be drawn."""
    return [
        *opening(study),
        *val_part(study, of_accuracy),
        *test_part(study),
        *published_part(study),
        *decisions_part(study, of_decisions, remarks),
        *cost_part(study),
        *settings_part(study),
        *unfinished_part(study),
    ]


def opening(study: Study) -> list[Part]:
    settings = study.settings
    seeds = sorted({run.seed for run in study.runs})
    split = "train and val" if settings.train_split == "trainval" else "train"
    data = (
        f"Images with a shorter side of {settings.resize} pixels, cropped to {settings.crop}; "
        f"learnt from {split}; networks with {settings.width} channels in the stem."
    )
    sources = {run.settings.source_sha256 for run in study.runs} - {""}
    if sources:
        data += f" Source weights: SHA-256 {min(sources)[:12]}..."
    return [
        Heading(TITLE, level=1),
        Paragraph(
            f"{counted(len(study.runs), 'finished run')}: "
            f"{counted(len(study.methods), 'method')} on {counted(len(study.tasks), 'task')}, "
            f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}. {data}"
        ),
        Paragraph(
            "Figures are means ± sample standard deviations over seeds; without ± they are of one "
            "seed, or do not depend on it. All are those of the last epoch. A mean or a sum over "
            f"tasks is made from the seeds that have all tasks; {tables.NONE}: there is none."
        ),
        *comparison(study),
    ]


def comparison(study: Study) -> list[Part]:
    """What the reader must know before looking at published figures."""
    found = ["scored images: val (published: test)"] if not scored(study) else []
    found += test_departures(study) if scored(study) else departures(study)
    if not found:
        return [Paragraph("The test accuracies were got as the published ones were.")]
    return [
        Paragraph("Not comparable with published figures. These runs differ from them in:"),
        Bullets(found),
    ]


def scored(study: Study) -> bool:
    return any(run.test for run in study.runs)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# Accuracy.


def val_part(study: Study, pictures: Sequence[Picture]) -> list[Part]:
    remarks = [NOT_S, *source_remarks(study)]
    if study.settings.train_split == "trainval":
        remarks.insert(
            0,
            "The networks have learnt from these val images: the accuracies tell how well they "
            "are remembered, not how well others are recognised.",
        )
    if not any(picture.name == "learning_val" for picture in pictures):
        remarks.append("Val was evaluated once a run: there are no curves of it.")
    return [
        Heading(f"Accuracy on val{seen_in_training(study)}"),
        tables.val_table(study),
        Bullets(remarks),
        *pictures,
    ]


def source_remarks(study: Study) -> list[str]:
    """Where imagenet12's column comes from, or why there is none."""
    accuracies = [run.history[-1]["val_accuracy"] for run in study.evaluated_sources]
    if not accuracies:
        return [
            f"{SOURCE.name}, the source network's own task, has no figure here: the network was "
            f"not evaluated on it, or not with these settings."
        ]
    remark = f"{SOURCE.name} is the source network's own task: one network for all rows."
    low, high = min(accuracies), max(accuracies)
    if high - low >= 0.005:  # as shown: precisions and devices may round differently
        remark += (
            f" Its {len(accuracies)} evaluations range from {low:.2f} to {high:.2f}; shown is the "
            f"one in {study.evaluated_sources[0].name}."
        )
    return [remark]


def test_part(study: Study) -> list[Part]:
    table = tables.test_table(study)
    if table is None:
        return []
    remarks = [
        "From score.py; the answers are taken to be of each method's own way to decide at test "
        "time, as submit_test.py gives them by default."
    ]
    if test_departures(study):
        remarks.append(NOT_S)
    return [Heading("Accuracy on test"), table, Bullets(remarks)]


def published_part(study: Study) -> list[Part]:
    if scored(study) and not test_departures(study):
        return []
    return [
        Heading("Published figures"),
        tables.published_table(),
        Bullets(ABOUT_PUBLISHED),
    ]


# Decisions, cost, settings.


def decisions_part(study: Study, pictures: Sequence[Picture], remarks: Sequence[str]) -> list[Part]:
    if not tables.deciding_rows(study):
        return []
    parts = [
        Heading("Decisions"),
        tables.blocks_table(study),
        tables.policies_table(study),
        *pictures,
    ]
    return [*parts, Bullets(remarks)] if remarks else parts


def cost_part(study: Study) -> list[Part]:
    with_source = (
        "Stored parameters: what all tasks add, and the source network once; 1 × source is one "
        "ResNet-26 with its own classifier."
        if study.source
        else "Stored parameters: of all tasks; no source network lies with these runs."
    )
    machines = sorted({machine(run.environment) for run in study.runs})
    remarks = [
        with_source,
        "Compute: multiply-accumulates of predicting one image, mean over tasks; the policy "
        "network's apart.",
        f"Training times are without evaluation, summed over tasks, on: {'; '.join(machines)}. "
        "Other work on the same machine is in them.",
    ]
    details = [tables.stored_table(study), tables.compute_table(study), tables.time_table(study)]
    return [Heading("Cost"), tables.cost_table(study), Bullets(remarks), *details]


def machine(environment: dict) -> str:
    threads = counted(environment["threads"], "thread")
    return (
        f"{environment['device_name']} ({environment['device']}), {threads}, "
        f"{environment['precision']}, torch {environment['packages'].get('torch', 'unknown')}"
    )


def settings_part(study: Study) -> list[Part]:
    commits = sorted({run.environment.get("commit") or "not recorded" for run in study.runs})
    remarks = [differences(study), f"Code, by commit: {', '.join(commits)}."]
    if any(run.method == "l2sp" for run in study.runs):
        remarks.append("L2-SP has its penalty in place of weight decay.")
    return [
        Heading("Settings"),
        tables.methods_table(study),
        tables.tasks_table(study),
        Bullets(remarks),
    ]


def differences(study: Study) -> str:
    """Which settings, besides those that a method is named by, are not the same for all methods."""
    names = ("lr", "lr_agent", "precision")
    differing = [
        name
        for name in names
        for task in study.tasks
        if len({run.setting(name) for run in study.runs if run.task == task}) > 1
    ]
    if not differing:
        return "Besides their own settings, all methods have the same ones on a task."
    return f"Between methods or seeds these differ too: {', '.join(dict.fromkeys(differing))}."


def unfinished_part(study: Study) -> list[Part]:
    if not study.unfinished:
        return []
    runs = [
        f"{run.name}: {run.method} on {run.task}, seed {run.seed}, "
        f"{len(run.history)} of {run.settings.epochs} epochs"
        for run in study.unfinished
    ]
    return [Heading("Not finished, and left out"), Bullets(runs)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Write a report of finished runs, as Markdown and as one HTML page.")
    add_study_arguments(parser)
    args = parser.parse_args(argv)
    study = read_study(args.folders)
    accuracy = write_figures(accuracy_figures(study), args.out)
    extremes, remarks = extremes_figures(study, image_folders(args))
    decisions = write_figures([*decision_figures(study), *extremes], args.out)
    parts = page(study, accuracy, decisions, remarks)
    svg = {
        picture.name: (args.out / FIGURES / f"{picture.name}.svg").read_bytes()
        for picture in (*accuracy, *decisions)
    }
    for name, text in (("report.md", as_markdown(parts)), ("report.html", as_html(parts, svg))):
        write_whole(args.out / name, text.encode())
        say(f"{args.out / name}")


if __name__ == "__main__":
    run_script(main)
