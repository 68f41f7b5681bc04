"""The scheduler process as it is, with a stopwatch: how old reports are when it takes them, how long it decides.

    python benchmarks/_scheduler_probe.py PARENT < SchedulerSpec     (started by control_plane.py)

Writes one JSON line when it is told to end: pairs of the moment (monotonic clock) and the value.
"""

from __future__ import annotations

import json
import signal
import sys
import time

import msgspec

from llumnix import linux
from llumnix.cluster.scheduler_process import SchedulerProcess, SchedulerSpec
from llumnix.control import scheduler_events as control
from llumnix.wire.news import Report
from llumnix.wire.to_scheduler import ToScheduler


class Probed(SchedulerProcess):
    def __init__(self, spec: SchedulerSpec) -> None:
        super().__init__(spec)
        self.ages_s: list[tuple[float, float]] = []
        self.rounds_s: list[tuple[float, float]] = []

    def _on_message(self, message: ToScheduler) -> None:
        if isinstance(message, Report):
            now = time.monotonic()
            self.ages_s.append((now, now - message.snapshot.at))
        super()._on_message(message)

    def _handle(self, event: control.SchedulerEvent) -> None:
        began_s = time.perf_counter()
        super()._handle(event)
        if isinstance(event, control.RoundDue):
            self.rounds_s.append((time.monotonic(), time.perf_counter() - began_s))


def main() -> int:
    linux.die_with_parent(int(sys.argv[1]))
    process = Probed(msgspec.json.decode(sys.stdin.buffer.read(), type=SchedulerSpec))
    signal.signal(signal.SIGTERM, lambda _signal, _frame: process.stop())
    process.run()
    print(json.dumps({"ages_s": process.ages_s, "rounds_s": process.rounds_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
