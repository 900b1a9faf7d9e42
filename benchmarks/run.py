"""Measure speed, memory and how cost grows; docs/speed.md tells what came out.

    python -m benchmarks.run throughput --json FILE     and: epoch, scale, wall_clock, gpu

Each part is a module with add_flags(parser), measure(**flags) -> figures, and table(figures).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import epoch, gpu, scale, throughput, wall_clock
from runtime.cli import Parser
from runtime.errors import run_script
from runtime.files import check_place, write_whole
from runtime.progress import say

PARTS = {
    "throughput": throughput,
    "epoch": epoch,
    "scale": scale,
    "wall_clock": wall_clock,
    "gpu": gpu,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Measure speed, memory and how cost grows.")
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, part in PARTS.items():
        summary = part.__doc__.partition("\n")[0]
        flags = parts.add_parser(name, help=summary, description=summary)
        part.add_flags(flags)
        flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
        flags.add_argument("--table", type=Path, metavar="FILE", help="write what is printed there")
    chosen = vars(parser.parse_args(argv))
    part, files = PARTS[chosen.pop("part")], [chosen.pop("json"), chosen.pop("table")]
    for file in filter(None, files):
        check_place(file)
    figures = part.measure(**chosen)
    said = part.table(figures)
    say(said)
    for file, text in zip(files, (json.dumps(figures, indent=2), said), strict=True):
        if file:
            write_whole(file, f"{text}\n".encode())


if __name__ == "__main__":
    run_script(main)
