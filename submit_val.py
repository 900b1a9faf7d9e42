"""Predict the val images of all ten tasks with the trained networks, and write results.json."""

from collections.abc import Sequence

from errors import run_script
from predictions import submit


def main(argv: Sequence[str] | None = None) -> None:
    submit("val", __doc__, argv)


if __name__ == "__main__":
    run_script(main)
