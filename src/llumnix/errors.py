"""Errors by fault.

    LlumnixError
    ├── UsageError        the user's: one sentence, exit code 2 (or a 4xx)
    ├── IllegalEvent      ours: an event that the table of a machine has no edge for; raised loudly
    │   └── IllegalMessage a peer's: a message that breaks the protocol; logged loudly, ends nobody else
    └── ServerRefused     another's: a server cannot be reached, or will not do it; exit code 1
        └── ServerSilent   it, or a part of it, does not answer just now

A peer that is late is not an error: its message is counted and ignored. A peer that is gone is an event.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LlumnixError(Exception):
    """Base of all errors that this package raises on purpose."""


class UsageError(LlumnixError):
    """Bad input from the user; `str(error)` is one sentence that says what to do."""


class IllegalEvent(LlumnixError):
    """A machine got an event that cannot happen in its state. Carries the transcript so far."""


class IllegalMessage(IllegalEvent):
    """A peer sent what it cannot have meant; the machine is as it was."""


class ServerRefused(LlumnixError):
    """The server cannot be reached, or will not do it; `str(error)` is a sentence with its reason."""


class ServerSilent(ServerRefused):
    """Nobody answers at the server's address, or its scheduler does not: so it is while one of them is restarted."""


def in_a_clause(error: OSError) -> str:
    """What the system refused, within a sentence: `no such file or directory`."""
    return (error.strerror or str(error)).lower()


@contextmanager
def refused_as(what: str) -> Iterator[None]:
    """Raises UsageError for what the system refuses meanwhile: `what`, which begins a sentence, and why."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what}: {error.strerror or error}.") from error
