"""A load run from its first question to its records: what `llumnix bench` does between flags and files."""

from __future__ import annotations

import re
import resource
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import msgspec
from rich.console import Console

from llumnix.bench.completion import Prompts, Target
from llumnix.bench.open_loop import OpenLoopRun
from llumnix.bench.server import Server
from llumnix.errors import UsageError
from llumnix.remote import server_url
from llumnix.report.records import MOVED, MigrationRecord, Records, RequestRecord
from llumnix.report.summary import Fact
from llumnix.workload.workload import Workload

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


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
    tries: int = 1
    """So often a request is asked in all, if it fails. Its client then waits until it has more tokens than it had."""
    vocab: int = 256
    """Prompts are made of token ids below this."""
    text: bool = False
    """Prompts are sent as text, a character for each token id."""
    tenant_header: str = ""
    """The header that names a request's tenant, as the server's `--classes` have it; empty: none does."""

    def __post_init__(self) -> None:
        server_url(self.url)
        if not 0 < self.time_scale < float("inf"):
            raise UsageError(f"--time-scale must be above 0, not {self.time_scale:g}.")
        if not 0 < self.timeout_s < float("inf"):
            raise UsageError(f"--timeout-s must be above 0, not {self.timeout_s:g}.")
        if self.tries < 1:
            raise UsageError(f"--tries must be at least 1, not {self.tries}.")
        if self.vocab < 1:
            raise UsageError(f"--vocab must be at least 1, not {self.vocab}.")
        if self.tenant_header and not _HEADER.fullmatch(self.tenant_header):
            raise UsageError(f"--tenant-header {self.tenant_header} is no name of a header.")

    @property
    def base_url(self) -> str:
        """Without a slash or `/v1` at the end."""
        return server_url(self.url)


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a run gave: its records, and facts for its summary."""

    records: Records
    facts: dict[str, Fact]
    details: dict[str, str]
    """What the server said with the first failure of each kind, where it said anything."""
    interrupted: bool
    asked_again: frozenset[str]
    """Requests that took more than one try, whatever came of it."""


async def bench(workload: Workload, config: BenchConfig, console: Console) -> BenchResult:
    """Runs `workload` against the server of `config`. Progress and warnings go to `console`.

    Failed requests are rows with an error, never an exception; Ctrl-C ends the run early with what there is.
    Raises ServerRefused if no server answers, UsageError if it does not serve the model, or if the workload names
    tenants or classes that are nothing for a header.
    """
    _check_names(workload, config, console)
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    _allow_many_connections(len(workload.requests))
    # uvicorn closes idle connections after 5 s: one that is given up earlier is never closed under a request.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0, ssl=ssl.create_default_context())
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(30.0, config.timeout_s))
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        server = Server(session, config.base_url, headers)
        model, longest = await server.model(config.model)
        _warn_of_long_requests(workload, longest, console)
        prompts = Prompts(workload.seed, config.vocab)
        target = Target(config.base_url, model, prompts, headers, config.text, config.tenant_header)
        run = OpenLoopRun(
            workload,
            session,
            target,
            time_scale=config.time_scale,
            timeout_s=config.timeout_s,
            tries=config.tries,
        )
        await run.go(server, console)
        migrations = await server.migrations(run.start_unix_s)
    records = Records(_with_moves(run.rows, run.server_ids, migrations), migrations or [], run.instances)
    details = {kind: said for kind, said in run.details.items() if said}
    return BenchResult(
        records, _facts(workload, config, model, run), details, run.interrupted, frozenset(run.asked_again)
    )


def _facts(workload: Workload, config: BenchConfig, model: str, run: OpenLoopRun) -> dict[str, Fact]:
    return {
        "url": config.base_url,
        "model": model,
        "workload": workload.name,
        "seed": workload.seed,
        "time_scale": config.time_scale,
        "tries": config.tries,
        "asked_again": len(run.asked_again),
        "client_cores": round(run.cpu_s / run.wall_s, 3),
        "client_late_s": round(run.late_s, 6),
    }


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


def _check_names(workload: Workload, config: BenchConfig, console: Console) -> None:
    """Of tenants and classes, which go into headers."""
    tenants = {request.tenant for request in workload.requests} - {""}
    if tenants and not config.tenant_header:
        console.print("[yellow]The workload names tenants, and --tenant-header does not: the server is not told.[/]")
    for name in {request.cls for request in workload.requests} | (tenants if config.tenant_header else set()):
        if not (name.isascii() and name.isprintable()):
            raise UsageError(f"{name[:100]!r} of the workload is no tenant or class that a header can name.")


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
