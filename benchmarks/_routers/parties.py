"""Whom a load is put to: each router with each of its policies, vLLM's own data-parallel server, and Llumnix.

All have the same engines: the same flags, as many of them. Those behind the routers are shared; a router itself is
started anew for every load, so that it remembers nothing of the last.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Protocol, assert_never

import httpx
import psutil
from frame.server import ServerProcess, llumnix_server, ready, running, started, vllm_command, vllm_server, wait_for

from _routers import tools
from _routers.faults import Fault
from llumnix.client import AdminClient

OURS, WITH_CLASSES = "llumnix", "llumnix, classes"
PARALLEL = "vllm serve, data parallel"

_LEAST_PROMPT = {"model": "tiny", "prompt": "a", "max_tokens": 2}
_PREEMPTIONS = re.compile(r"^vllm:num_preemptions_total\{.*\} (\S+)$", re.MULTILINE)
_PULSES, _PULSE_S = 10, 0.5
DISMISSED_S = 60.0
"""For an engine to end that was asked to."""


class Party(Protocol):
    name: str

    def serving(self) -> AbstractContextManager[str]:
        """While it lasts all engines serve under this URL."""
        ...

    def processes(self) -> list[psutil.Process]:
        """All that serve, engines too."""
        ...

    def preemptions(self) -> int:
        """Of all engines so far."""
        ...

    def hit(self, fault: Fault, over: Event) -> None:
        """Does this to one of the engines; what lasts ends with `over`. Afterwards they are all there again once
        `serving` is entered anew."""
        ...


class Fleet:
    """Engines behind routers: each a `vllm serve`."""

    def __init__(self, engine_flags: Sequence[str], count: int) -> None:
        self.flags = list(engine_flags)
        self._stacks = [ExitStack() for _ in range(count)]
        self.engines: list[ServerProcess] = [self._start(stack) for stack in self._stacks]
        self._dismissed: list[ServerProcess] = []

    def _start(self, stack: ExitStack) -> ServerProcess:
        return stack.enter_context(started(vllm_command(self.flags), ("--api-server-count", "1")))

    def close(self) -> None:
        for stack in self._stacks:
            stack.close()

    def dismiss(self, engine: ServerProcess) -> None:
        """It ends when it has answered, or not, whom it serves."""
        engine.process.terminate()
        self._dismissed.append(engine)

    def repair(self) -> None:
        """Engines that ended are started again; all are ready then."""
        while self._dismissed:
            self._dismissed.pop().process.wait(DISMISSED_S)
        for index, engine in enumerate(self.engines):
            if engine.process.poll() is not None:
                self._stacks[index].close()
                self.engines[index] = self._start(self._stacks[index])
        for engine in self.engines:
            ready(engine)


class Routed:
    """A router with one of its policies before the fleet."""

    def __init__(self, router: str, policy: str, fleet: Fleet) -> None:
        self.name = f"{router} {policy}"
        self._router, self._policy, self._fleet = router, policy, fleet
        self._process: ServerProcess | None = None

    @contextmanager
    def serving(self) -> Iterator[str]:
        self._fleet.repair()
        words = tools.command(self._router, self._policy, [engine.url for engine in self._fleet.engines])
        with started(words, ()) as self._process:
            ready(self._process)
            _until_it_answers(self._process.url)
            yield self._process.url

    def processes(self) -> list[psutil.Process]:
        assert self._process is not None
        servers = [self._process, *self._fleet.engines]
        return [process for server in servers for process in _processes_of(server)]

    def preemptions(self) -> int:
        return sum(_preemptions_of(engine.url) for engine in self._fleet.engines)

    def hit(self, fault: Fault, over: Event) -> None:
        engine = self._fleet.engines[0]
        match fault:
            case "kill":
                engine.kill()
            case "stop":
                self._fleet.dismiss(engine)
            case "slow":
                _pulse(_core_of(engine))
            case "weak":
                _weaken(self._fleet.flags, _core_of(engine), over)
            case _:
                assert_never(fault)


class DataParallel:
    """vLLM's own: one server, its engines behind its own balance of load."""

    def __init__(self, engine_flags: Sequence[str], count: int) -> None:
        self.name = PARALLEL
        self._flags, self._count = list(engine_flags), count
        self._stack = ExitStack()
        self._server: ServerProcess | None = None

    @contextmanager
    def serving(self) -> Iterator[str]:
        if self._server is None or len(self._cores()) < self._count:
            self.close()
            parallel = ("--data-parallel-size", str(self._count), "--api-server-count", "1")
            self._server = self._stack.enter_context(vllm_server(self._flags, *parallel))
        yield self._server.url

    def close(self) -> None:
        self._stack.close()

    def processes(self) -> list[psutil.Process]:
        assert self._server is not None
        return _processes_of(self._server)

    def preemptions(self) -> int:
        assert self._server is not None
        return _preemptions_of(self._server.url)

    def hit(self, fault: Fault, over: Event) -> None:
        core = self._cores()[0].pid
        match fault:
            case "kill":
                os.kill(core, signal.SIGKILL)
            case "stop":
                os.kill(core, signal.SIGTERM)
            case "slow":
                _pulse(core)
            case "weak":
                _weaken(self._flags, core, over)
            case _:
                assert_never(fault)

    def _cores(self) -> list[psutil.Process]:
        if self._server is None or self._server.process.poll() is not None:
            return []
        return self._server.descendants("EngineCore")


class Ours:
    def __init__(self, name: str, flags: Sequence[str], count: int) -> None:
        self.name, self._flags, self._count = name, list(flags), count
        self._stack = ExitStack()
        self._server = self._stack.enter_context(llumnix_server(flags, instances=count))
        self._admin = AdminClient(self._server.url)
        self._stack.callback(self._admin.close)

    def close(self) -> None:
        self._stack.close()

    @contextmanager
    def serving(self) -> Iterator[str]:
        wait_for(lambda: len(running(self._admin)) >= self._count, f"{self._count} instances", timeout_s=120)
        yield self._server.url

    def processes(self) -> list[psutil.Process]:
        return _processes_of(self._server)

    def preemptions(self) -> int:
        return sum(row.preemptions for row in self._admin.instances())

    def hit(self, fault: Fault, over: Event) -> None:
        victim = min((row for row in self._admin.instances() if row.state == "running"), key=lambda row: row.id)
        assert victim.pid is not None
        match fault:
            case "kill":
                os.kill(victim.pid, signal.SIGKILL)
            case "stop":
                self._admin.drain(victim.id, keep=False)
                self._admin.start(1)
            case "slow":
                _pulse(victim.pid)
            case "weak":
                _weaken(self._flags, victim.pid, over)
            case _:
                assert_never(fault)


def of(names: Sequence[str], engine_flags: Sequence[str], count: int, classes: Path, stack: ExitStack) -> list[Party]:
    """Parties of these names, all of which have served; they end with the stack. `classes`: a file of classes."""
    parties: list[Party] = []
    routed = [(router, policy) for router in tools.POLICIES for policy in tools.POLICIES[router]]
    wanted = [(router, policy) for router, policy in routed if f"{router} {policy}" in names]
    if wanted:
        tools.ensure()
        fleet = Fleet(engine_flags, count)
        stack.callback(fleet.close)
        parties += [Routed(router, policy, fleet) for router, policy in wanted]
    if PARALLEL in names:
        parallel = DataParallel(engine_flags, count)
        stack.callback(parallel.close)
        parties.append(parallel)
    for name, more in ((OURS, ()), (WITH_CLASSES, ("--classes", str(classes)))):
        if name in names:
            ours = Ours(name, [*engine_flags, *more], count)
            stack.callback(ours.close)
            parties.append(ours)
    for party in parties:  # engines that start take the cores of one that is measured
        with party.serving():
            pass
    return parties


def names() -> list[str]:
    """Of everybody that can be compared."""
    return [
        OURS,
        WITH_CLASSES,
        PARALLEL,
        *(f"{router} {policy}" for router, known in tools.POLICIES.items() for policy in known),
    ]


def _pulse(pid: int) -> None:
    """For some seconds the process runs half of the time. Blocks meanwhile."""
    for _ in range(_PULSES):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(_PULSE_S)
        os.kill(pid, signal.SIGCONT)
        time.sleep(_PULSE_S)


def _weaken(flags: Sequence[str], pid: int, over: Event) -> None:
    """Until then its steps take twice as long (`_paced/`). `flags`: its own, the model first. Blocks meanwhile."""
    word = Path(flags[0]) / f"slow-{pid}"
    word.touch()
    over.wait()
    word.unlink()


def _core_of(engine: ServerProcess) -> int:
    (core,) = engine.descendants("EngineCore")
    return int(core.pid)


def _processes_of(server: ServerProcess) -> list[psutil.Process]:
    return server.processes() if server.process.poll() is None else []


def _preemptions_of(url: str) -> int:
    """By the engine's metrics; 0 of one that is gone."""
    try:
        text = httpx.get(f"{url}/metrics", timeout=10).text
    except httpx.TransportError:
        return 0
    return int(sum(float(value) for value in _PREEMPTIONS.findall(text)))


def _until_it_answers(url: str) -> None:
    """A router may be healthy before it knows of its engines."""

    def answers() -> bool:
        try:
            return httpx.post(f"{url}/v1/completions", json=_LEAST_PROMPT, timeout=30).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    wait_for(answers, f"an answer through {url}", timeout_s=60)
