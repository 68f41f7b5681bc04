"""Paths on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def a_path(text: str) -> Path:
    """For a flag or an argument that names a file or a folder. A variable that is not set names none, and would else
    be the current folder, whose files would be written over."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty, and no path")
    return Path(text)
