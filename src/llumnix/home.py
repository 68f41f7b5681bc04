"""Paths that begin with a home."""

from __future__ import annotations

from pathlib import Path

from llumnix.errors import UsageError


def expanded(path: str) -> Path:
    """`path` with the folder that `~` or `~somebody` stands for. Raises UsageError if nobody has that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path} names no home: there is no such user.") from error
