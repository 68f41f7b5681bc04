"""Runs in a file, from one call of `routers.py` to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from _routers.outcome import Run


def read(path: Path) -> list[Run]:
    """Also what was kept before runs said their setting. Raises ValueError if it is no file of runs."""
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
        return msgspec.convert([_with_endless(row) for row in rows], list[Run])
    except (msgspec.MsgspecError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is no file of runs: {error}") from error


def write(path: Path, runs: Sequence[Run]) -> None:
    path.write_bytes(msgspec.json.encode(runs))


def _with_endless(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: times of a run in which all failed are written as null."""
    figures = {name: math.inf if value is None else value for name, value in row["figures"].items()}
    return {"setting": None} | row | {"figures": figures}
