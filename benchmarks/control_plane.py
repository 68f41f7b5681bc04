"""The control plane of a large cluster: launcher, scheduler, one front end, many instances that only count.

    python benchmarks/control_plane.py --instances 64 --rate 500
    python benchmarks/control_plane.py --instances 1024 --rate 2000

Scheduler and launcher are the real ones, the front end's part the real dispatcher and mailbox; messages are the real
ones, at the real pace (control/pace.py). Instances have no engine (_counting_instances.py), and in a large cluster they
step less often, so that two cores can play them. First an eighth of the cluster under an eighth of the load, then all
of it. Exit code 1 if the scheduler or the front end (the making of the load included) needs a core or more, the
launcher a fifth of one, the P99 of a dispatch is above 1 ms, or that of the age of a load report, when used, above
50 ms (or what the pace of a large cluster adds).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import zmq
from _counting_instances import Request, Spec
from frame.arguments import at_least_one, not_negative, positive
from frame.verdict import Figure, Goal, at_most, conclude
from frame.vitals import cpu_s
from rich.console import Console
from rich.table import Table

from llumnix import linux
from llumnix.cluster.scheduler_process import SchedulerSpec
from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.pace import pace_of
from llumnix.policy.dispatch import DispatchRequest
from llumnix.types import InstanceId, Priority, RequestId
from llumnix.wire.addresses import AddressBook, on_one_machine
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import Report
from llumnix.wire.to_front_end import FRONT_END_MAIL, ToFrontEnd

GOALS_CORES = {"scheduler": 1.0, "front end": 1.0, "launcher": 0.2}
GOAL_DECISION_S, GOAL_AGE_S = 0.001, 0.050
_HOSTS = 4
_STEP_S = 0.01
_STEP_S_PER_INSTANCE = 5e-5
"""So that all of them together make 20,000 steps a second at most."""
_TOTAL_BLOCKS = 180
"""So few that instances run full now and then, and there is something to move."""
_FOLDER = Path(__file__).resolve().parent


@dataclass(slots=True)
class Figures:
    instances: int
    rate: float
    from_s: float = 0.0
    """When measuring began, on the monotonic clock."""
    dispatched: int = 0
    moved: int = 0
    cores: dict[str, float] = field(default_factory=dict)
    decisions_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    """From the moment when a request was due until it was sent: with the event loop's other work."""
    front_ages_s: list[float] = field(default_factory=list)
    """Of the chosen instance's report, at each decision."""
    reports_s: list[float] = field(default_factory=list)
    """From a report's making until the scheduler took it."""
    rounds_s: list[float] = field(default_factory=list)


class FrontEnd:
    """What a front end does of the control plane, on an event loop as there."""

    def __init__(self, book: AddressBook, requests: dict[InstanceId, str], figures: Figures) -> None:
        self._loop = asyncio.get_running_loop()
        self._figures = figures
        self._dispatcher = Dispatcher(PolicyConfig())
        self.loads: dict[InstanceId, Report] = {}
        self.heard_all = asyncio.Event()
        self._mailbox = Mailbox(book.front_end(0), FRONT_END_MAIL, self._on_mail)
        self._mailbox.start()
        self._context = zmq.Context()
        by_address = {address: self._connect(address) for address in set(requests.values())}
        self._sockets = {instance: by_address[address] for instance, address in requests.items()}

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.connect(address)
        return socket

    def _on_mail(self, message: ToFrontEnd) -> None:
        if isinstance(message, Report):
            self._loop.call_soon_threadsafe(self._take, message)

    def _take(self, report: Report) -> None:
        self.loads[report.info.id] = report
        self._dispatcher.on_report(report.snapshot)
        if len(self.loads) == self._figures.instances:
            self.heard_all.set()

    async def offer(self, rate: float, seconds: float, measured_from_s: float) -> None:
        """Poisson arrivals for so many seconds; what is due before `measured_from_s` warms up."""
        rng = random.Random(1)
        due_s = began_s = time.monotonic()
        number = 0
        while (due_s := due_s + rng.expovariate(rate)) < began_s + seconds:
            if (pause_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
            number += 1
            tokens, output = int(min(2000, rng.lognormvariate(5.3, 0.8))) + 1, rng.randint(20, 180)
            self._dispatch(number, tokens, output, due_s if due_s >= began_s + measured_from_s else None)
            if not number % 16:
                await asyncio.sleep(0)  # a late loop must still hear reports

    def _dispatch(self, number: int, tokens: int, output: int, due_s: float | None) -> None:
        request = RequestId(f"request-{number}")
        began_s = time.perf_counter()
        decision = self._dispatcher.dispatch(DispatchRequest(request, tokens, Priority(0)))
        took_s = time.perf_counter() - began_s
        assert decision is not None
        message = Request(decision.instance, request, tokens, output, dispatched=True)
        self._sockets[decision.instance].send(msgspec.msgpack.encode(message))
        if due_s is not None:
            now = time.monotonic()
            self._figures.dispatched += 1
            self._figures.decisions_s.append(took_s)
            self._figures.late_s.append(now - due_s)
            self._figures.front_ages_s.append(now - self.loads[decision.instance].snapshot.at)

    def close(self) -> None:
        self._mailbox.close()
        self._context.destroy(linger=0)


def main() -> int:
    arguments = _parse()
    linux.allow_many_files()
    sizes = sorted({max(1, arguments.instances // 8), arguments.instances})
    runs = []
    for instances in sizes:
        rate = arguments.rate * instances / arguments.instances
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            runs.append(asyncio.run(_measure(Path(folder), Figures(instances, rate), arguments)))
    return _tell(runs)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=at_least_one, default=64)
    parser.add_argument("--rate", type=positive, default=500.0, help="Requests per second. Default: 500.")
    parser.add_argument("--seconds", type=positive, default=30.0, help="Measured, of each size. Default: 30.")
    parser.add_argument("--warm-s", type=not_negative, default=6.0, help="Before that. Default: 6.")
    return parser.parse_args()


async def _measure(folder: Path, figures: Figures, arguments: argparse.Namespace) -> Figures:
    book = on_one_machine(folder)
    ids = [InstanceId(f"i{number}") for number in range(figures.instances)]
    hosts = min(_HOSTS, figures.instances)
    requests = {each: f"ipc://{folder}/requests-{number % hosts}" for number, each in enumerate(ids)}
    cluster = ClusterConfig(instances=figures.instances, scaling="advise")
    front_end = FrontEnd(book, requests, figures)
    scheduler = _start_scheduler(book, cluster)
    launcher = _start_launcher(book, folder, figures.instances)
    processes = [_start_instances(book, tuple(ids[host::hosts]), requests, cluster) for host in range(hosts)]
    try:
        async with asyncio.timeout(60):
            await front_end.heard_all.wait()
        pids = {"scheduler": scheduler.pid, "launcher": launcher.pid, "front end": os.getpid()}
        watch = asyncio.create_task(_watch_cpu(pids, arguments.warm_s, arguments.seconds, figures))
        await front_end.offer(figures.rate, arguments.warm_s + arguments.seconds, arguments.warm_s)
        await watch
        figures.moved = sum(report.snapshot.migrations_out for report in front_end.loads.values())
        scheduler.terminate()
        probe = json.loads(await asyncio.to_thread(lambda: scheduler.communicate(timeout=30)[0]))
        figures.reports_s = [age_s for at_s, age_s in probe["ages_s"] if at_s >= figures.from_s]
        figures.rounds_s = [took_s for at_s, took_s in probe["rounds_s"] if at_s >= figures.from_s]
    finally:
        for process in (scheduler, launcher, *processes):
            process.kill()
            process.wait()
        front_end.close()
    return figures


async def _watch_cpu(pids: dict[str, int], after_s: float, seconds: float, figures: Figures) -> None:
    await asyncio.sleep(after_s)
    before, figures.from_s = {name: cpu_s([psutil.Process(pid)]) for name, pid in pids.items()}, time.monotonic()
    await asyncio.sleep(seconds)
    took_s = time.monotonic() - figures.from_s
    figures.cores = {name: (cpu_s([psutil.Process(pid)]) - before[name]) / took_s for name, pid in pids.items()}


def _start_launcher(book: AddressBook, folder: Path, instances: int) -> subprocess.Popen[bytes]:
    written = folder / "book.json"
    written.write_bytes(msgspec.json.encode(book))
    command = [sys.executable, str(_FOLDER / "_launcher_probe.py"), str(os.getpid()), str(written), str(instances)]
    return subprocess.Popen(command)


def _start_scheduler(book: AddressBook, cluster: ClusterConfig) -> subprocess.Popen[bytes]:
    spec = SchedulerSpec(
        book=book,
        policy=PolicyConfig(),
        migration=MigrationConfig(),
        cluster=cluster,
        scaling=ScalingConfig(min_instances=1, max_instances=4096),
    )
    return _start("_scheduler_probe.py", spec)


def _start_instances(
    book: AddressBook, instances: tuple[InstanceId, ...], requests: dict[InstanceId, str], cluster: ClusterConfig
) -> subprocess.Popen[bytes]:
    spec = Spec(
        book=book,
        instances=instances,
        requests=requests,
        total_blocks=_TOTAL_BLOCKS,
        step_s=max(_STEP_S, _STEP_S_PER_INSTANCE * cluster.instances),
        cluster=cluster,
    )
    return _start("_counting_instances.py", spec)


def _start(script: str, spec: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(_FOLDER / script), str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(spec))
    process.stdin.close()
    process.stdin = None  # `communicate` would flush it
    return process


def _tell(runs: list[Figures]) -> int:
    table = Table("", *(f"{run.instances} instances, {run.rate:g} requests/s" for run in runs), "goal")
    table.add_row("requests dispatched, moved", *(f"{run.dispatched}, {run.moved}" for run in runs), "")
    table.add_row("reports taken by the scheduler", *(str(len(run.reports_s)) for run in runs), "")
    for name, goal in GOALS_CORES.items():
        table.add_row(f"{name}, cores", *(f"{run.cores[name]:.3f}" for run in runs), f"< {goal:g}")
    table.add_row(
        "dispatch decision P50 / P99, ms", *(_ms(r.decisions_s) for r in runs), f"P99 ≤ {GOAL_DECISION_S * 1e3:g}"
    )
    table.add_row("due until sent P50 / P99, ms", *(_ms(run.late_s) for run in runs), "")
    goal_age = f"P99 ≤ {GOAL_AGE_S * 1e3:g}, {_goal_age_s(runs[-1]) * 1e3:.0f}"
    table.add_row("age of the report decided on P50 / P99, ms", *(_ms(run.front_ages_s) for run in runs), goal_age)
    table.add_row("age of reports at the scheduler P50 / P99, ms", *(_ms(run.reports_s) for run in runs), goal_age)
    table.add_row("pairing round P50 / P99, ms", *(_ms(run.rounds_s) for run in runs), "")
    Console(width=140).print(table)
    last, goal_age_ms = runs[-1], at_most(1e3 * _goal_age_s(runs[-1]))
    return conclude(
        Figure("instances", last.instances),
        Figure("requests dispatched", last.dispatched),
        *(Figure(f"{name}", last.cores[name], at_most(goal), "cores") for name, goal in GOALS_CORES.items()),
        _p99("dispatch decision", last.decisions_s, at_most(1e3 * GOAL_DECISION_S)),
        _p99("age of the report decided on", last.front_ages_s, goal_age_ms),
        _p99("age of reports at the scheduler", last.reports_s, goal_age_ms),
    )


def _p99(name: str, values_s: list[float], goal_ms: Goal) -> Figure:
    return Figure(f"{name}, P99", 1e3 * float(np.percentile(values_s, 99)), goal_ms, "ms")


def _goal_age_s(run: Figures) -> float:
    """Where instances report less often than they could, a heartbeat may be all that is known."""
    pace = pace_of(ClusterConfig(), run.instances)
    return GOAL_AGE_S + (pace.heartbeat_s if pace.report_s > ClusterConfig().report_interval_s else 0.0)


def _ms(values_s: list[float]) -> str:
    if not values_s:
        return ""
    p50, p99 = np.percentile(values_s, [50, 99])
    return f"{p50 * 1e3:.3g} / {p99 * 1e3:.3g}"


if __name__ == "__main__":
    sys.exit(main())
