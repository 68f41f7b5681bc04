"""How fast a server starts, and what one more instance costs in time and memory.

    python benchmarks/footprint.py [--further 3] [--runs 3] [--compile] [--model MODEL -- vLLM flags]

Starts `llumnix serve` with one instance, then adds one at a time by `POST /llumnix/v1/instances`. Memory is PSS
(`/proc/PID/smaps_rollup`: pages that processes share are divided among them) of the server's whole process tree, so
what a further instance takes from its siblings' shares is set off. Each instance serves requests before it is measured.
With `--compile` vLLM compiles the model, each server for the first time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _server import Server, add_compile_flag, empty_compile_cache, llumnix_server, tiny_engine_flags

READY_S, FURTHER_S, FURTHER_MIB = 60.0, 4.0, 450.0
"""Goals."""
POLL_S = 0.02
START_TIMEOUT_S = 300.0
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Footprint:
    ready_s: float
    base_mib: float
    """PSS of all processes with one instance."""
    further_s: list[float]
    further_mib: list[float]


def pss_mib(server: Server) -> float:
    """Of all processes of the server."""
    total_kib = 0
    for process in server.processes():
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:  # it ended meanwhile
            continue
        total_kib += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total_kib / 1024


def ask(server: Server, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait_running(server: Server, count: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        rows = ask(server, "/llumnix/v1/instances")["instances"]
        if sum(row["state"] == "running" for row in rows) >= count:
            return
        time.sleep(POLL_S)
    raise SystemExit(f"no {count} instances within {START_TIMEOUT_S:g} s: {rows}")


def serve_some(server: Server, requests: int) -> None:
    """Prompts at once, which are spread over the instances, since each has one running at most."""
    model = ask(server, "/v1/models")["data"][0]["id"]
    prompts = [[number + 1] * 256 for number in range(requests)]
    ask(server, "/v1/completions", {"model": model, "prompt": prompts, "max_tokens": 32, "ignore_eos": True})


def measure(engine: Sequence[str], further: int) -> Footprint:
    with empty_compile_cache(), llumnix_server(engine, "--instances", "1") as server:
        serve_some(server, 2)
        time.sleep(SETTLE_S)
        base_mib = before_mib = pss_mib(server)
        further_s, further_mib = [], []
        for number in range(further):
            began = time.monotonic()
            ask(server, "/llumnix/v1/instances", {"count": 1})
            wait_running(server, number + 2)
            further_s.append(time.monotonic() - began)
            serve_some(server, 2 * (number + 2))
            time.sleep(SETTLE_S)
            now_mib = pss_mib(server)
            further_mib.append(now_mib - before_mib)
            before_mib = now_mib
        return Footprint(server.ready_s, base_mib, further_s, further_mib)


def spread(values: Sequence[float]) -> str:
    """Median [lowest-highest]."""
    return f"{statistics.median(values):.1f} [{min(values):.1f}-{max(values):.1f}]"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time to start and memory, per instance.")
    parser.add_argument("--further", type=int, default=3, help="instances added to the first (3)")
    parser.add_argument("--runs", type=int, default=3, help="servers started, one after the other (3)")
    add_compile_flag(parser)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--model", help="instead of the tiny model; flags for vLLM follow behind --")
    parser.add_argument("engine_flags", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    engine = [options.model] if options.model else tiny_engine_flags(compiled=options.compile)
    runs = [measure([*engine, *options.engine_flags], options.further) for _ in range(options.runs)]
    ready = [run.ready_s for run in runs]
    seconds = [value for run in runs for value in run.further_s]
    mib = [value for run in runs for value in run.further_mib]
    print("Median [lowest-highest].")
    print(f"all processes with one instance: {spread([run.base_mib for run in runs])} MiB PSS")
    goals = (
        ("from start to ready, s", ready, READY_S),
        ("one more instance, s", seconds, FURTHER_S),
        ("one more instance, MiB PSS", mib, FURTHER_MIB),
    )
    for name, values, goal in goals:
        verdict = "reached" if statistics.median(values) <= goal else "MISSED "
        print(f"{verdict}  {name}: {spread(values)} (goal: at most {goal:g})")
    if options.check and any(statistics.median(values) > goal for _, values, goal in goals):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
