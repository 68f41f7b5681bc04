"""Faults for a server that runs: when and what comes from a seed, whom it hits from who is there at the moment."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import psutil
from frame.admin import Admin
from frame.checked import Server

from llumnix.api.bodies import InstanceRow

WEIGHTS = {
    "kill an instance": 4,
    "stop an instance": 2,
    "hang an engine": 2,
    "drain an instance, auto-scaling starts another": 2,
    "SIGTERM to an instance, auto-scaling starts another": 1,
    "start an instance, auto-scaling drains one": 2,
    "kill the scheduler": 2,
    "kill a front end": 2,
}
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 4.0, 10.0
ENVIRONMENT = {"LLUMNIX_FAULT": "hang"}
HANG = signal.SIGUSR2
"""At which, with that fault, an engine's main thread hangs while its process lives."""

_FEWEST = 2
"""Instances that must run for one of them to be hit: with none at all, requests are refused, and nothing is shown."""


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    """Seconds from the beginning."""
    what: str
    lot: float
    """Decides who is hit: this part of the way along those that are there."""


def plan(rng: random.Random, duration_s: float, front_ends: int) -> list[Fault]:
    """A fault at least every ten seconds, the same for the same seed."""
    names = [name for name in WEIGHTS if front_ends > 1 or name != "kill a front end"]
    faults: list[Fault] = []
    at_s = 0.0
    while (at_s := at_s + rng.uniform(_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S)) < duration_s:
        (what,) = rng.choices(names, [WEIGHTS[name] for name in names])
        faults.append(Fault(at_s, what, rng.random()))
    return faults


@dataclass(slots=True)
class Faults:
    """Carries a plan out. `front_end_deaths_s`: when one was killed, on the monotonic clock."""

    server: Server
    admin: Admin
    front_ends: int
    done: Counter[str] = field(default_factory=Counter)
    front_end_deaths_s: list[float] = field(default_factory=list)

    async def run(self, faults: list[Fault]) -> None:
        began_s = time.monotonic()
        for fault in faults:
            await asyncio.sleep(max(0.0, began_s + fault.at_s - time.monotonic()))
            try:
                hit = await self._carry_out(fault)
            except (aiohttp.ClientError, psutil.Error):  # who was asked, or looked for, has just been killed
                hit = False
            self.done[fault.what if hit else f"{fault.what}: nobody to hit"] += 1

    async def _carry_out(self, fault: Fault) -> bool:
        acts: dict[str, Callable[[float], Awaitable[bool]]] = {
            "kill an instance": lambda lot: self._signal_instance(lot, signal.SIGKILL),
            "stop an instance": lambda lot: self._signal_instance(lot, signal.SIGSTOP),
            "hang an engine": lambda lot: self._signal_instance(lot, HANG),
            "drain an instance, auto-scaling starts another": self._drain,
            "SIGTERM to an instance, auto-scaling starts another": lambda lot: self._signal_instance(
                lot, signal.SIGTERM
            ),
            "start an instance, auto-scaling drains one": self._start,
            "kill the scheduler": self._kill_scheduler,
            "kill a front end": self._kill_front_end,
        }
        return await acts[fault.what](fault.lot)

    async def _victim(self, lot: float) -> InstanceRow | None:
        rows = [row for row in (await self.admin.status()).instances if row.state == "running"]
        rows.sort(key=lambda row: row.id)
        return rows[int(lot * len(rows))] if len(rows) >= _FEWEST else None

    async def _signal_instance(self, lot: float, number: signal.Signals) -> bool:
        victim = await self._victim(lot)
        return victim is not None and victim.pid is not None and _signal(victim.pid, number)

    async def _drain(self, lot: float) -> bool:
        victim = await self._victim(lot)
        if victim is None:
            return False
        return await self.admin.drain(victim.id) == 202  # or the scheduler has just been killed, perhaps

    async def _start(self, _lot: float) -> bool:
        return await self.admin.start(1) == 202

    async def _kill_scheduler(self, _lot: float) -> bool:
        return any(
            _signal(child.pid, signal.SIGKILL)
            for child in psutil.Process(self.server.process.pid).children()
            if "llumnix.cluster.scheduler_process" in child.cmdline()
        )

    async def _kill_front_end(self, lot: float) -> bool:
        try:
            process = self.server.descendant(f"front-{int(lot * self.front_ends)}")
        except AssertionError:  # it has not come back yet
            return False
        self.front_end_deaths_s.append(time.monotonic())
        return _signal(process.pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
