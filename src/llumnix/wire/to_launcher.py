"""All that the launcher takes: reports, for the first of each instance, the scheduler's commands as they are, and its
heartbeats."""

from __future__ import annotations

import msgspec

from llumnix.control.scheduler_events import DeclareLost, StartInstances, StopInstance
from llumnix.wire.base import Wire
from llumnix.wire.news import Report


class SchedulerLives(Wire, frozen=True, kw_only=True, tag=True):
    """If it is not heard for long, the scheduler hangs."""


ToLauncher = Report | StartInstances | StopInstance | DeclareLost | SchedulerLives

LAUNCHER_MAIL: msgspec.msgpack.Decoder[ToLauncher] = msgspec.msgpack.Decoder(ToLauncher)
