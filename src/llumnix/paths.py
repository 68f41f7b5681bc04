"""Paths as users write them: they may begin with a home."""

from __future__ import annotations

import argparse
from pathlib import Path

from llumnix.errors import UsageError


def expanded(path: str) -> Path:
    """`path` with the folder that `~` or `~somebody` stands for. Raises UsageError if nobody has that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path} names no home: there is no such user.") from error


def a_path(text: str) -> Path:
    """For a flag or an argument that names a file or a folder. A variable that is not set names none, and would else
    be the current folder, whose files would be written over."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty, and no path")
    return expanded(text)


def path_text(text: str) -> str:
    """For a flag whose path is kept as text, and that is as good as not given if it is empty. No shell knows `~` in
    `--flag=~/file`, nor in a file of flags."""
    return str(expanded(text)) if text.startswith("~") else text
