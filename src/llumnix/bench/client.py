"""Open-loop load: every request is sent when the workload says, however slow the answers are.

Times of arrival are absolute (start + arrival), so that no delay adds up, and all times of a request count from
the arrival that was wanted: a client that is late makes the server look worse, never better. How late it was,
and how much of a core it used, are in the summary.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llumnix.bench.completion import BadAnswer, Prompts, Target, TokenTimes, complete
from llumnix.bench.server import Server
from llumnix.errors import UsageError
from llumnix.report.records import MOVED, InstanceRecord, MigrationRecord, Records, RequestRecord
from llumnix.report.summary import Fact, exists
from llumnix.types import InstanceState
from llumnix.workload.workload import Workload, WorkloadRequest

SAMPLE_INTERVAL_S = 1.0
PROGRESS_INTERVAL_S = 0.5
SENT_AT_ONCE = 32
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """How to put a workload on a server."""

    url: str
    model: str | None = None
    """None: the first that the server names."""
    api_key: str | None = None
    time_scale: float = 1.0
    """Arrival times are multiplied by this: 0.5 doubles the rate."""
    timeout_s: float = 600.0
    """A request that has not ended this long after it was sent has failed."""
    vocab: int = 256
    """Prompts are made of token ids below this."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"--url must look like http://127.0.0.1:8000, not {self.url}.")
        if not 0 < self.time_scale < float("inf"):
            raise UsageError(f"--time-scale must be above 0, not {self.time_scale:g}.")
        if not 0 < self.timeout_s < float("inf"):
            raise UsageError(f"--timeout-s must be above 0, not {self.timeout_s:g}.")
        if self.vocab < 1:
            raise UsageError(f"--vocab must be at least 1, not {self.vocab}.")

    @property
    def base_url(self) -> str:
        """Without a slash or `/v1` at the end."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a run gave: its records, and facts for its summary."""

    records: Records
    facts: dict[str, Fact]
    details: dict[str, str]
    """What the server said with the first failure of each kind, where it said anything."""
    interrupted: bool


async def bench(workload: Workload, config: BenchConfig, console: Console) -> BenchResult:
    """Runs `workload` against the server of `config`. Progress and warnings go to `console`.

    Failed requests are rows with an error, never an exception; Ctrl-C ends the run early with what there is.
    Raises UsageError if no server answers or it does not serve the model.
    """
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    _allow_many_connections(len(workload.requests))
    # uvicorn closes idle connections after 5 s: one that is given up earlier is never closed under a request.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(30.0, config.timeout_s))
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        server = Server(session, config.base_url, headers)
        model, longest = await server.model(config.model)
        _warn_of_long_requests(workload, longest, console)
        target = Target(config.base_url, model, Prompts(workload.seed, config.vocab), headers)
        run = _Run(workload, config, session, target)
        await run.go(server, console)
        migrations = await server.migrations(run.start_unix_s)
    facts: dict[str, Fact] = {
        "url": config.base_url,
        "model": model,
        "workload": workload.name,
        "seed": workload.seed,
        "time_scale": config.time_scale,
        "client_cores": round(run.cpu_s / run.wall_s, 3),
        "client_late_s": round(run.late_s, 6),
    }
    records = Records(_with_moves(run.rows, run.server_ids, migrations), migrations or [], run.instances)
    return BenchResult(records, facts, {kind: said for kind, said in run.details.items() if said}, run.interrupted)


class _Run:
    """The state of one run: what was sent, what came back."""

    def __init__(self, workload: Workload, config: BenchConfig, session: aiohttp.ClientSession, target: Target) -> None:
        self._workload, self._config, self._session, self._target = workload, config, session, target
        self._prefix = f"bench-{uuid.uuid4().hex[:8]}"
        self._tasks: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._failed = 0
        self.rows: list[RequestRecord] = []
        self.server_ids: dict[str, str] = {}
        """Our id of a request by the id that the server gave it."""
        self.instances: list[InstanceRecord] = []
        self.details: dict[str, str] = {}
        """What the server said with the first failure of each kind."""
        self.interrupted = False
        self.start_s = self.start_unix_s = self.late_s = self.cpu_s = self.wall_s = 0.0

    async def go(self, server: Server, console: Console) -> None:
        """Sends everything and waits for every answer."""
        cpu_s = time.process_time()
        self.start_s, self.start_unix_s = asyncio.get_running_loop().time(), time.time()
        async with _background(self._sample(server)), _background(self._show(console)):
            with _on_interrupt(self._stop):
                async with asyncio.TaskGroup() as group:
                    self._sender = group.create_task(self._send(group))
        self.rows.sort(key=lambda row: (row.arrival_s, row.id))
        self.wall_s = max(self._now_s(), 1e-9)
        self.cpu_s = time.process_time() - cpu_s

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self.start_s

    async def _send(self, group: asyncio.TaskGroup) -> None:
        for index, request in enumerate(self._workload.requests):
            arrival_s = request.arrival_s * self._config.time_scale
            wait_s = arrival_s - self._now_s()
            # One that is late goes out at once, but answers must be read while a long burst goes out.
            if wait_s > 0 or index % SENT_AT_ONCE == 0:
                await asyncio.sleep(max(0.0, wait_s))
            self.late_s = max(self.late_s, self._now_s() - arrival_s)
            task = group.create_task(self._one(request, index, arrival_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, request: WorkloadRequest, index: int, arrival_s: float) -> None:
        times, error = TokenTimes(zero_s=self.start_s), ""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                body = self._target.body(request, index)
                await complete(self._session, self._target, body, f"{self._prefix}-{request.id}", times)
            if times.tokens != request.output_tokens:
                error = "wrong number of tokens"
        except asyncio.CancelledError:
            error = INTERRUPTED
            raise
        except BadAnswer as bad:
            error = str(bad)
            self.details.setdefault(error, bad.detail)
        except TimeoutError:
            error = "timeout"
        except aiohttp.ClientConnectorError:
            error = "cannot connect"
        except (aiohttp.ClientError, OSError):
            error = "connection lost"
        finally:
            if times.server_id:
                self.server_ids[times.server_id] = request.id
            self._failed += bool(error)
            self.rows.append(_record(request, arrival_s, times, self._now_s(), error))

    def _stop(self) -> None:
        self.interrupted = True
        if self._sender is not None:
            self._sender.cancel()
        for task in self._tasks:
            task.cancel()

    async def _sample(self, server: Server) -> None:
        """Asks for the load of the instances once per second, until a server turns out not to know of any."""
        known: dict[str, InstanceRecord] = {}
        tick = 0
        while True:
            rows = await server.instances(self._now_s())
            if rows is None and tick == 0:
                return
            if rows is not None:
                named = {row.instance for row in rows}
                gone = [row for name, row in known.items() if name not in named and exists(row.state)]
                rows += [msgspec.structs.replace(r, at_s=self._now_s(), state=InstanceState.STOPPED) for r in gone]
                self.instances += rows
                known |= {row.instance: row for row in rows}
            tick += 1
            await asyncio.sleep(max(0.0, tick * SAMPLE_INTERVAL_S - self._now_s()))

    async def _show(self, console: Console) -> None:
        """A progress bar on a terminal; nothing elsewhere."""
        if not console.is_terminal:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
            bar = progress.add_task("", total=len(self._workload.requests))
            while True:
                text = f"{len(self._tasks):,} running" + (f", [red]{self._failed:,} failed[/]" if self._failed else "")
                progress.update(bar, completed=len(self.rows), description=text)
                progress.refresh()
                await asyncio.sleep(PROGRESS_INTERVAL_S)


def _record(request: WorkloadRequest, arrival_s: float, times: TokenTimes, ended_s: float, error: str) -> RequestRecord:
    """A row from what was asked and what came; all times from the start of the run."""
    first_s, several = times.first_s, times.tokens > 1
    return RequestRecord(
        id=request.id,
        arrival_s=arrival_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=times.tokens,
        priority=request.priority,
        ttft_s=None if first_s is None else first_s - arrival_s,
        tpot_s=(times.last_s - first_s) / (times.tokens - 1) if several and first_s is not None else None,
        latency_s=None if error else ended_s - arrival_s,
        largest_gap_s=times.largest_gap_s if several else None,
        error=error,
    )


def _with_moves(
    rows: Sequence[RequestRecord], ids: Mapping[str, str], migrations: Sequence[MigrationRecord] | None
) -> list[RequestRecord]:
    """The rows with the completed moves of each request; as they are if the server does not tell of migrations."""
    if migrations is None:
        return list(rows)
    ways: dict[str, list[str]] = {}
    for move in migrations:
        if move.outcome == MOVED and move.request_id in ids:
            ways.setdefault(ids[move.request_id], [move.source]).append(move.target)
    return [
        msgspec.structs.replace(row, migrations=max(0, len(way) - 1), instances=tuple(way))
        for row in rows
        for way in [ways.get(row.id, [])]
    ]


def _warn_of_long_requests(workload: Workload, longest: int | None, console: Console) -> None:
    totals = [request.prompt_tokens + request.output_tokens for request in workload.requests]
    if longest is None or max(totals, default=0) <= longest:
        return
    long = sum(total > longest for total in totals)
    console.print(
        f"[yellow]{long:,} of {len(totals):,} requests are longer than the model's {longest:,} tokens and will be "
        f"refused; total={longest} in the workload cuts them, scale= shrinks all.[/]"
    )


def _allow_many_connections(wanted: int) -> None:
    """Every running request holds a connection: raises the limit of open files as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted + 256
    if soft < enough and soft != resource.RLIM_INFINITY:
        most = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


@asynccontextmanager
async def _background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs `work` beside the block and cancels it at the end; its own failure is the block's."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        task.cancel()


@contextmanager
def _on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `stop` inside the block. In a thread that may not handle signals nothing changes."""
    loop = asyncio.get_running_loop()
    with suppress(RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        with suppress(RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)
