"""All that the launcher takes: reports, for the first of each instance and for whether it is to go away, the
scheduler's commands as they are, and heartbeats of the scheduler and the front ends."""

from __future__ import annotations

import msgspec

from llumnix.control.scheduler_events import DeclareLost, SetRole, StartInstances, StopInstance
from llumnix.wire.base import Wire
from llumnix.wire.news import Report


class SchedulerLives(Wire, frozen=True, kw_only=True, tag=True):
    """If it is not heard for long, the scheduler hangs."""


class FrontEndLives(Wire, frozen=True, kw_only=True, tag=True):
    """Its event loop turns; if this is not heard for long, it hangs. `pid` tells it from others at the same place."""

    front_end: int
    pid: int


ToLauncher = Report | StartInstances | StopInstance | SetRole | DeclareLost | SchedulerLives | FrontEndLives

LAUNCHER_MAIL: msgspec.msgpack.Decoder[ToLauncher] = msgspec.msgpack.Decoder(ToLauncher)
