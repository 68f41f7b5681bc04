"""What a benchmark is told, for argparse: what it cannot work with is refused before anything starts."""

from __future__ import annotations

import argparse
from math import isfinite
from pathlib import Path


def at_least_one(text: str) -> int:
    return _whole(text, least=1)


def whole(text: str) -> int:
    """Of which none is a number, too; or a seed."""
    return _whole(text, least=0)


def positive(text: str) -> float:
    number = not_negative(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number < 0 or not isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return number


def numbers(text: str) -> tuple[float, ...]:
    """One at least, with commas between, all above 0."""
    return tuple(map(positive, text.split(",")))


def whole_numbers(text: str) -> tuple[int, ...]:
    """The same of whole numbers."""
    return tuple(map(at_least_one, text.split(",")))


def file_in_a_folder(text: str) -> Path:
    """Which may be there or not, but its folder is: what was measured for hours is written there."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no file in a folder that is there")
    return path


def folder(text: str) -> Path:
    """It is made if it is not there."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} can be no folder: {error.strerror}") from error
    return path


def _whole(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)
