"""Pictures need matplotlib, which is not installed with the rest."""

from __future__ import annotations

from importlib.util import find_spec

from llumnix.errors import UsageError

HOW_TO_GET_IT = "Pictures need matplotlib: pip install 'matplotlib>=3.8' (it is the extra `figures` of llumnix-live)."


def can_draw() -> bool:
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raises UsageError, before any work is done for a picture that cannot be drawn."""
    if not can_draw():
        raise UsageError(HOW_TO_GET_IT)
