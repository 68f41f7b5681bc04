"""Numbers in the sentences that people and clients read."""

from __future__ import annotations

from decimal import Decimal


def figures(number: float, digits: int = 15) -> str:
    """With so many digits that count, by default as it is, and never with an exponent: 600, not 6e+02."""
    text = f"{number:.{digits}g}"
    return f"{Decimal(text):f}" if "e" in text else text
