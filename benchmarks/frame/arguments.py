"""Numbers that a benchmark is told, for argparse: what it cannot work with is refused before anything starts."""

from __future__ import annotations

import argparse
from math import isfinite


def count(text: str) -> int:
    """At least one."""
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


def _whole(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)
