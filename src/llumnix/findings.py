"""What `llumnix doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GIB = 1024**3


class Mark(StrEnum):
    GOOD = "ok"
    NOTE = "note"
    """Works, but the user may want to know."""
    BAD = "BAD"
    """Serving will fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    mark: Mark
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.mark:>4}  {self.what}" + (f"\n      {self.advice}" if self.advice else "")
