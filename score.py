"""Score a results.json offline: accuracy per task, their mean, and S, beside published rows.

    python score.py [RESULTS] --annotations FOLDER_OR_ZIP --split {val,test}

What counts as a right answer stands in challenge/scoring.py.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from challenge.scoring import as_text, score
from challenge.submissions import PUBLIC_LABELS, read_answers, read_labels
from decathlon import TASK_BY_NAME
from runtime.cli import Parser
from runtime.errors import SpotTuneError, run_script
from runtime.files import check_place, write_whole


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Score answers to the Visual Decathlon, for any split whose labels you have.")
    parser.epilog = f"The {PUBLIC_LABELS}."
    add = parser.add_argument
    # fmt: off
    add("results", nargs="?", type=Path,
        help="the answers, or a .zip that holds them as results.json; unset: results.json in a "
             "folder named as the split, where submit_*.py write")
    add("--annotations", type=Path, default=Path("data/decathlon-1.0/annotations"),
        metavar="FOLDER_OR_ZIP", help="holds the labels, <task>_<split>.json")
    add("--split", choices=["val", "test"], default="val", help="what was answered")
    add("--tasks", nargs="+", metavar="TASK", choices=list(TASK_BY_NAME),
        default=list(TASK_BY_NAME), help="score only these, any of %(choices)s; unset: all")
    add("--json", type=Path, metavar="FILE", help="write the figures here as well")
    # fmt: on
    args = parser.parse_args(argv)

    results = args.results or Path(args.split) / "results.json"
    if args.json:
        check_place(args.json)
        if args.json.resolve() in (results.resolve(), args.annotations.resolve()):
            raise SpotTuneError(f"--json {args.json}: this file is to be scored; name another")
    tasks = [name for name in TASK_BY_NAME if name in args.tasks]
    labels = read_labels(args.annotations, args.split, tasks)
    report = score(read_answers(results), labels, args.split, tasks)
    if args.json:
        write_whole(args.json, (json.dumps(asdict(report), indent=2) + "\n").encode())
    print(as_text(report))


if __name__ == "__main__":
    run_script(main)
