"""What all command lines share: a parser with one-line errors, and types of arguments."""

import argparse
import math
from pathlib import Path
from typing import NoReturn


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not of a flag whose help says what happens when it is unset."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_itself = action.default is None or "unset: " in action.help
        return action.help if says_itself else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Tells a wrong argument in one line, without repeating the usage of twenty flags."""

    def __init__(self, description: str, **more: object) -> None:
        super().__init__(description=description, formatter_class=HelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. See {self.prog} --help\n")


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} given; expected a number above 0")
    return number


def whole_number(text: str) -> int:
    """An argparse type: a whole number that a checkpoint can keep, of 64 bits."""
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} given; expected a whole number of 64 bits")
    return number


def positive_int(text: str) -> int:
    """An argparse type: a whole number from 1 on."""
    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} given; expected a whole number from 1 on")
    return number


def non_negative_float(text: str) -> float:
    """An argparse type: a finite number from 0 on."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} given; expected a number from 0 on")
    return number


def non_negative_int(text: str) -> int:
    """An argparse type: 0, 1, 2 ..."""
    number = whole_number(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} given; expected a whole number from 0 on")
    return number


def folder_name(text: str) -> Path:
    """An argparse type: a path that is not empty, as an unset shell variable would be."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name given; expected a folder")
    return Path(text)
