"""How fast a server starts, and what one more instance costs in time and memory.

    python benchmarks/footprint.py [--further 3] [--runs 3] [--compile] [--model MODEL -- vLLM flags]

Starts `llumnix serve` with one instance, then adds one at a time by `POST /llumnix/v1/instances`. Memory is PSS
(`/proc/PID/smaps_rollup`: pages that processes share are divided among them) of the server's whole process tree, so
what a further instance takes from its siblings' shares is set off. Each instance serves requests before it is measured.
With `--compile` vLLM compiles the model, each server for the first time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from frame.arguments import at_least_one
from frame.models import add_compile_flag, empty_compile_cache, tiny_engine_flags
from frame.server import ServerProcess, llumnix_server, wait_for_instances
from frame.verdict import at_most, conclude, median
from frame.vitals import pss_mib

from llumnix.client import AdminClient

READY_S, FURTHER_S, FURTHER_MIB = 60.0, 4.0, 450.0
"""Goals."""
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Footprint:
    ready_s: float
    base_mib: float
    """PSS of all processes with one instance."""
    further_s: list[float]
    further_mib: list[float]


def serve_some(server: ServerProcess, requests: int) -> None:
    """Prompts at once, which are spread over the instances, since each has one running at most."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        prompts = [[number + 1] * 256 for number in range(requests)]
        body = {"model": model, "prompt": prompts, "max_tokens": 32, "ignore_eos": True}
        client.post("/v1/completions", json=body).raise_for_status()


def measure(engine: Sequence[str], further: int) -> Footprint:
    with empty_compile_cache(), llumnix_server(engine, instances=1) as server:
        admin = AdminClient(server.url)
        serve_some(server, 2)
        time.sleep(SETTLE_S)
        base_mib = before_mib = pss_mib(server.processes())
        further_s, further_mib = [], []
        for number in range(further):
            began_s = time.monotonic()
            admin.start(1)
            wait_for_instances(server.url, number + 2)
            further_s.append(time.monotonic() - began_s)
            serve_some(server, 2 * (number + 2))
            time.sleep(SETTLE_S)
            now_mib = pss_mib(server.processes())
            further_mib.append(now_mib - before_mib)
            before_mib = now_mib
        admin.close()
        return Footprint(server.ready_s, base_mib, further_s, further_mib)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time to start and memory, per instance.")
    parser.add_argument("--further", type=at_least_one, default=3, help="instances added to the first (3)")
    parser.add_argument("--runs", type=at_least_one, default=3, help="servers started, one after the other (3)")
    add_compile_flag(parser)
    parser.add_argument("--model", help="instead of the tiny model; flags for vLLM follow behind --")
    parser.add_argument("engine_flags", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse()
    engine = [options.model] if options.model else tiny_engine_flags(compiled=options.compile)
    runs = [measure([*engine, *options.engine_flags], options.further) for _ in range(options.runs)]
    return conclude(
        median("all processes with one instance, PSS", [run.base_mib for run in runs], unit="MiB"),
        median("from start to ready", [run.ready_s for run in runs], at_most(READY_S), "s"),
        median("one more instance", [each for run in runs for each in run.further_s], at_most(FURTHER_S), "s"),
        median("one more, PSS", [each for run in runs for each in run.further_mib], at_most(FURTHER_MIB), "MiB"),
    )


if __name__ == "__main__":
    sys.exit(main())
