"""What all command lines share: a parser with one-line errors, and types of arguments."""

import argparse
import math
from collections.abc import Callable
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


def number(kind: type, is_allowed: Callable[[float], bool], expected: str) -> Callable:
    """An argparse type: an int or float in a range that `expected` describes."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not is_allowed(value):
            raise argparse.ArgumentTypeError(f"{text} given; expected {expected}")
        return value

    return parse


positive_float = number(float, lambda value: 0 < value < math.inf, "a number above 0")
non_negative_float = number(float, lambda value: 0 <= value < math.inf, "a number from 0 on")
share = number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
positive_int = number(int, lambda value: 1 <= value < 2**63, "a whole number from 1 on")
non_negative_int = number(int, lambda value: 0 <= value < 2**63, "a whole number from 0 on")
whole_number = number(int, lambda value: -(2**63) <= value < 2**63, "a whole number of 64 bits")


def folder_name(text: str) -> Path:
    """An argparse type: a path that is not empty, as an unset shell variable would be."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name given; expected a folder")
    return Path(text)
