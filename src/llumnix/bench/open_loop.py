"""Open-loop load: every request is sent when the workload says, however slow the answers are.

Times of arrival are absolute (start + arrival), so that no delay adds up, and all times of a request count from
the arrival that was wanted: a client that is late makes the server look worse, never better. How late it was,
and how much of a core it used, are in the summary.
"""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llumnix.bench.completion import BadAnswer, Target, TokenTimes, complete
from llumnix.bench.server import Server, sample_instances
from llumnix.report.records import InstanceRecord, RequestRecord
from llumnix.workload.trace import request_id
from llumnix.workload.workload import Workload, WorkloadRequest

PROGRESS_INTERVAL_S = 0.5
SENT_AT_ONCE = 32
FIRST_PATIENCE_S, MOST_PATIENCE_S = 0.5, 8.0
"""Before a request is asked again, doubled with each try, unless the server said when: as OpenAI's own client."""
INTERRUPTED = "interrupted"


class OpenLoopRun:
    """One run of a workload: sends every request in time and keeps what came back."""

    def __init__(
        self,
        workload: Workload,
        session: aiohttp.ClientSession,
        target: Target,
        *,
        time_scale: float,
        timeout_s: float,
        tries: int,
    ) -> None:
        self._workload, self._session, self._target = workload, session, target
        self._time_scale, self._timeout_s, self._tries = time_scale, timeout_s, tries
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
        self.asked_again: set[str] = set()
        """Requests that took more than one try."""
        self.interrupted = False
        self.start_s = self.start_unix_s = 0.0
        """When the run started, on the loop's clock and on the wall."""
        self.late_s = 0.0
        """How late a request was sent at most."""
        self.cpu_s = self.wall_s = 0.0

    async def go(self, server: Server, console: Console) -> None:
        """Sends everything and waits for every answer."""
        cpu_s = time.process_time()
        self.start_s, self.start_unix_s = asyncio.get_running_loop().time(), time.time()
        async with _background(sample_instances(server, self._now_s, self.instances)), _background(self._show(console)):
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
            arrival_s = request.arrival_s * self._time_scale
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
            async with asyncio.timeout(self._timeout_s):
                error = await self._ask(request, index, times)
        except asyncio.CancelledError:
            error = INTERRUPTED
            raise
        except TimeoutError:
            error = "timeout"
        finally:
            self._failed += bool(error)
            self.rows.append(_record(request, arrival_s, times, self._now_s(), error))

    async def _ask(self, request: WorkloadRequest, index: int, times: TokenTimes) -> str:
        """As often as it takes and is allowed; why the last try failed, empty if it did not."""
        body = self._target.body(request, index)
        for number in range(1, self._tries + 1):
            failure = await self._try(request, index, number, body, times)
            if failure is None:
                return "" if times.tokens == request.output_tokens else "wrong number of tokens"
            self.details.setdefault(str(failure), failure.detail)
            if failure.lasting or number == self._tries:
                break
            self.asked_again.add(request.id)
            patience_s = min(FIRST_PATIENCE_S * 2 ** (number - 1), MOST_PATIENCE_S)
            await asyncio.sleep(patience_s if failure.again_s is None else failure.again_s)
            times.begin_again()
        return str(failure)

    async def _try(
        self, request: WorkloadRequest, index: int, number: int, body: bytes, times: TokenTimes
    ) -> BadAnswer | None:
        # Not the request's own id: a trace may have anything there, and this goes into a header.
        again = f"{number}-" if number > 1 else ""
        named = {"X-Request-Id": f"{self._prefix}-{again}{request_id(index)}", "Content-Type": "application/json"}
        times.server_id = ""
        try:
            await complete(self._session, self._target.url, self._target.headers_of(request) | named, body, times)
        except BadAnswer as bad:
            return bad
        except TimeoutError:  # of the connection: that of the request cancels
            return BadAnswer("timeout")
        except aiohttp.ClientConnectorError:
            return BadAnswer("cannot connect")
        except (aiohttp.ClientError, OSError):
            return BadAnswer("connection lost")
        finally:
            if times.server_id:
                self.server_ids[times.server_id] = request.id
        return None

    def _stop(self) -> None:
        self.interrupted = True
        if self._sender is not None:
            self._sender.cancel()
        for task in self._tasks:
            task.cancel()

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
