"""Where an attempt to give a request away stands, on the giving side."""

from __future__ import annotations

from enum import StrEnum


class SourceState(StrEnum):
    PREPARING = "preparing"
    """The target was asked for room."""
    COPYING = "copying"
    """Stage `stage` is out; its blocks are pinned."""
    WAITING = "waiting"
    """Prefill goes on, and too little is settled to be worth a stage."""
    DETACHING = "detaching"
    """Leaving the batch; steps in flight finish."""
    COMMITTING = "committing"
    """In no batch; the target was told to take it."""
    DOUBT = "doubt"
    """The target did not answer the commit; the front end was asked."""
    MOVED = "moved"
    """The target has it."""
    STAYED = "stayed"
    """It was not moved: it goes on here, or has ended."""


TOOK_TOO_LONG = {
    SourceState.PREPARING: "the target did not say in time whether it has room",
    SourceState.COPYING: "its blocks were not copied in time",
    SourceState.WAITING: "too little of it was settled in time",
    SourceState.DETACHING: "it could not leave its batch in time",
}
"""What has not happened in time; once the target was told to take it, the front end is asked instead."""
