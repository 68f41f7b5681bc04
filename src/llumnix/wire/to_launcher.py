"""All that the launcher takes: reports, for the first of each instance, and the scheduler's commands as they are."""

from __future__ import annotations

import msgspec

from llumnix.control.scheduler_events import DeclareLost, StartInstances, StopInstance
from llumnix.wire.news import Report

ToLauncher = Report | StartInstances | StopInstance | DeclareLost

LAUNCHER_MAIL: msgspec.msgpack.Decoder[ToLauncher] = msgspec.msgpack.Decoder(ToLauncher)
