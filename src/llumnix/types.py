"""Names that every folder shares: ids, epochs, priorities, states. No behaviour."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NewType

InstanceId = NewType("InstanceId", str)
"""One incarnation of one engine. A restarted instance gets a new id, so a late message of a
dead one can never be mistaken for a message of its successor."""

RequestId = NewType("RequestId", str)
"""The id of a sequence inside the engines. Token replay makes a new one (see control/ownership)."""

Epoch = NewType("Epoch", int)
"""Number of one attempt to place a request: grows with every migration attempt of that request."""

Priority = NewType("Priority", int)
"""vLLM's convention: lower is more important, 0 is normal, below 0 is high."""

NORMAL = Priority(0)
HIGH = Priority(-1)


def is_high(priority: int) -> bool:
    """True for requests that are promised headroom (paper section 4.4.1)."""
    return priority < 0


def by_number(name: str) -> tuple[str | int, ...]:
    """The key by which names are sorted for people: i2 stands before i10."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name))


class InstanceState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    LOST = "lost"


class Role(StrEnum):
    """What an instance is preferred for (`policy/roles.py`)."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"


class RequestState(StrEnum):
    WAITING = "waiting"
    """Queued; holds no blocks. A preempted request waits, too (its blocks are gone)."""
    RUNNING = "running"
    MIGRATING = "migrating"
    """Taken out of the batch at the source, not yet confirmed at the target."""
