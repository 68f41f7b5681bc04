"""What may be at a path where something else is expected."""

from __future__ import annotations

import os
from pathlib import Path


def odd_path(path: Path, situation: str) -> Path:
    """Makes it so, and says which path to name."""
    match situation:
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "binary":
            path.write_bytes(bytes(range(256)))
        case "not UTF-8":
            path.write_bytes("größe: 1\n".encode("latin-1"))
        case "below a file":
            path.touch()
            return path / path.name
        case "too long":
            return path.with_name(f"{'x' * 300}.py")
    return path
