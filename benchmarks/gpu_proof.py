"""Does the whole of it do on a GPU what it does on CPUs? vLLM with two instances on one GPU, in six minutes.

    python benchmarks/gpu_proof.py --out out/proof                             # 80 GB of GPU memory: LLaMA-7B's size
    python benchmarks/gpu_proof.py --model qwen3-8b --parts equality --out …   # with grouped queries
    python benchmarks/gpu_proof.py --out … --parts moves -- --transports host  # flags for the servers
    python benchmarks/gpu_proof.py --device cpu --out …                        # the same with small models

No weights are needed: they are drawn on the device from a seed (_seeded/). Parts, each alone with `--parts`:

    equality   greedy and seeded streams that are moved about, beside neighbours that stop at random: every token must
               be what an undisturbed stream says; and another beginning must be seen at the end
    kill       `kill -9` of the instance with all streams: they go on, with the same tokens
    drain      of an instance with 50 streams: how long, and the same tokens
    moves      by length: downtime, beside a blocking copy and computing anew; what neighbours pay; the paper's figure
    profile    `llumnix profile`: a cost profile of this GPU for the simulator

The first three run with vLLM's batch invariance (on a GPU, rounding depends on who else is in the batch, which would
look like a wrong token), the others as one serves. Each part has a limit of time, and all of them together have one
(`--limit-s`): what has no time left is told as not run. A table, `gpu_proof.json` and `gpu_proof.png` in `--out`.
Ends with 1 if a goal was missed, or a part failed or did not run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import aiohttp
from families.equality import leaves
from frame.arguments import at_least_one, folder, positive
from frame.server import llumnix_server
from frame.verdict import Figure, at_most, conclude
from proof import exact, speed, told
from proof.site import ON_CPU, ON_GPU, Site
from proof.sizes import MODELS, ModelSize

from llumnix.engine import gpus
from llumnix.errors import LlumnixError

Run = Callable[[Site], Coroutine[Any, Any, list[Figure]]]

FAILURES = (
    *(AssertionError, TimeoutError, RuntimeError, OSError, LookupError, aiohttp.ClientError, LlumnixError),
    ValueError,  # a stream that is not as long as it was undisturbed
    SystemExit,  # a move that is refused again and again
)
"""Of a part: the others are worth having."""


@dataclass(frozen=True, slots=True)
class ProofServer:
    """One of the servers that run one after the other, and what is done with it, in this order."""

    flags: tuple[str, ...]
    exact: bool
    """On a GPU, nothing depends on who else is in the batch; steps are slower."""
    parts: dict[str, tuple[int, Run]]
    """With limits in seconds."""
    start_s: int = 180
    """Limit of its start."""


EAGER = ("--enforce-eager",)
GRAPHS = ("--compilation-config", '{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}')
"""Decoding as fast as it gets, and no minute of compiling before."""
NO_CACHE = ("--no-enable-prefix-caching",)
ALL_AT_ONCE = ("--max-stages", "1", "--last-stage-max-blocks", "1000000")
SERVERS = (
    ProofServer((), True, {"equality": (110, exact.equality), "kill": (90, exact.kill), "drain": (60, exact.drain)}),
    ProofServer(NO_CACHE, False, {"moves": (110, speed.moves), "profile": (60, speed.profile)}),
    ProofServer((*NO_CACHE, *ALL_AT_ONCE), False, {"blocking": (60, speed.blocking)}),
)
BESIDE = {"moves": "blocking"}
"""What is measured beside a part, on another server."""
PARTS = tuple(name for server in SERVERS for name in server.parts if name not in BESIDE.values())


def main() -> int:
    values = arguments()
    on_gpu = values.device == "cuda"
    amount = ON_GPU if on_gpu else ON_CPU
    amount = replace(amount, requests=values.requests or amount.requests)
    site = Site(ModelSize(values.model, on_gpu), amount, values.out)
    site.out.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + values.limit_s
    figures: list[Figure] = []
    signal.signal(signal.SIGALRM, _too_long)
    with site.size.engine_flags() as engine:
        for server in SERVERS:
            if wanted := [name for name in server.parts if name in values.parts]:
                figures += run(server, wanted, [*engine, *values.engine_flags], site, until_s)
                told.write(site, figures)  # whatever comes of the rest
    if "moves" in values.parts:
        figures += told.of_moves(site)
    told.write(site, figures)
    return conclude(*figures)


def run(server: ProofServer, parts: Sequence[str], engine: Sequence[str], site: Site, until_s: float) -> list[Figure]:
    """Starts it, and does these parts with it."""
    if until_s - time.monotonic() < server.start_s / 2:
        return [Figure(f"{name}: not run, no time was left", None, at_most(0)) for name in parts]
    on_gpu = site.size.on_gpu
    environment = {"VLLM_BATCH_INVARIANT": "1"} if on_gpu and server.exact else {}
    how = (EAGER if server.exact else GRAPHS) if on_gpu else ()
    flags = (*server.flags, "--no-migration", *how)
    figures: list[Figure] = []
    with mock.patch.dict(os.environ, environment), ExitStack() as stack:
        began_s = time.monotonic()
        signal.alarm(server.start_s)
        try:
            site.url = stack.enter_context(llumnix_server(engine, *flags, instances=2)).url
        except FAILURES as error:
            print(f"{', '.join(parts)}: the server did not start: {error}")
            return [Figure(f"{name}: failed", 1, at_most(0)) for name in parts]
        finally:
            signal.alarm(0)
        figures.append(Figure(f"start for {', '.join(parts)}", time.monotonic() - began_s, unit="s"))
        for name in parts:
            limit_s, part = server.parts[name]
            figures += asyncio.run(run_part(name, part, site, min(limit_s, until_s - time.monotonic())))
    return figures


async def run_part(name: str, part: Run, site: Site, limit_s: float) -> list[Figure]:
    if limit_s < 1:
        return [Figure(f"{name}: not run, no time was left", None, at_most(0))]
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            figures = await part(site)
    except* FAILURES as errors:
        for error in leaves(errors):
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        figures = [Figure(f"{name}: failed", 1, at_most(0))]
    return [*figures, Figure(f"{name}: all of it", time.monotonic() - began_s, unit="s")]


def _too_long(*_: object) -> None:
    raise TimeoutError("it was not ready in time")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=MODELS, default="llama-7b", help="The size to take. Default: llama-7b.")
    parser.add_argument("--parts", default=",".join(PARTS), help="Some of them.")
    parser.add_argument("--requests", type=at_least_one, help="Of the part equality. Default: 64; 8 on a CPU.")
    parser.add_argument("--limit-s", type=positive, default=360.0, help="Of all. Default: 360.")
    parser.add_argument(
        "--out", type=folder, required=True, help="Folder for gpu_proof.json, gpu_proof.png, the profile."
    )
    parser.add_argument("engine_flags", nargs="*", help="Behind --: more for `llumnix serve`.")
    values = parser.parse_args()
    values.parts = values.parts.split(",")
    if unknown := set(values.parts) - set(PARTS):
        parser.error(f"there is no part {min(unknown)}; there are {', '.join(PARTS)}")
    values.parts += [BESIDE[name] for name in values.parts if name in BESIDE]
    if values.device == "cuda" and gpus.installed() is None:
        parser.error("there is no NVIDIA driver here; --device cpu tries the same with small models")
    return values


if __name__ == "__main__":
    sys.exit(main())
