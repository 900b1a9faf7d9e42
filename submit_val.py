"""Predict the val images of all ten tasks with the trained networks, and write results.json."""

from collections.abc import Sequence

from challenge.predictions import submit
from runtime.errors import run_script


def main(argv: Sequence[str] | None = None) -> None:
    submit("val", __doc__, argv)


if __name__ == "__main__":
    run_script(main)
