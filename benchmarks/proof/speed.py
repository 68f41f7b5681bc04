"""What moves cost, by length, beside a copy that blocks and computing anew; and a profile for the simulator."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from frame.stream import open_session, served_model
from frame.verdict import Figure, at_least
from migration_downtime import Client, measure_beside, measure_blocking, measure_moves, migrate_to_and_fro

from llumnix.engine import gpus
from llumnix.sim.profiles.file import load_profile
from proof.site import Site

_WARM_UP_MOVES = 2


async def moves(site: Site) -> list[Figure]:
    """Figures of it are told with those of `blocking`."""
    async with open_session(site.url, timeout_s=None, keep_alive=True) as session:
        client = Client(session, await served_model(session), random.Random(0))
        await migrate_to_and_fro(client, site.amount.lengths[0], _WARM_UP_MOVES)
        for length in site.amount.lengths:
            mine = site.by_length[length]
            await measure_moves(client, length, mine, site.amount.moves)
            await measure_beside(client, length, mine, site.amount.moves)
        refused = client.refused
    for why in refused:
        print(f"refused, and tried again: {why}")
    return []


async def blocking(site: Site) -> list[Figure]:
    """On a server that copies nothing before the hand-over."""
    async with open_session(site.url, timeout_s=None, keep_alive=True) as session:
        client = Client(session, await served_model(session), random.Random(0))
        await migrate_to_and_fro(client, site.amount.lengths[0], _WARM_UP_MOVES)
        for length in site.amount.lengths:
            await measure_blocking(client, length, site.by_length[length], site.amount.moves)
    return []


async def profile(site: Site) -> list[Figure]:
    """`llumnix profile`, as one would run it for one instance, with the bandwidth that moves showed."""
    path = site.out / f"{_device(site)}-{site.size.name}.toml"
    process = await asyncio.create_subprocess_exec(*profile_command(site, path), stderr=asyncio.subprocess.PIPE)
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    print(said.decode(errors="replace").strip())
    if process.returncode:
        raise RuntimeError(f"llumnix profile ended with {process.returncode}")
    made = load_profile(str(path))
    site.profile = path.read_text()
    return [
        Figure("profile: blocks of an instance", made.memory.total_blocks, at_least(1)),
        Figure("profile: a step of one sequence", made.decode.batch_ms[0], unit="ms"),
        Figure("profile: 1,000 tokens of a prompt", made.prefill.step_ms(1000), unit="ms"),
    ]


def profile_command(site: Site, out: Path) -> list[str]:
    speeds = [speed for mine in site.by_length.values() for speed in mine.gb_per_s]
    bandwidth = ("--gigabytes-per-s", f"{max(speeds):.3f}") if speeds else ()
    return [
        *(sys.executable, "-m", "llumnix", "profile", "--url", site.url, "--out", str(out)),
        *("--prompts", site.amount.prompts, "--batches", site.amount.batches, "--contexts", site.amount.contexts),
        *("--block-bytes", str(site.size.token_bytes * site.size.block_tokens), *site.size.limits, *bandwidth),
        *("--instances", "1"),  # of those that share this device: as one that has it alone
    ]


def _device(site: Site) -> str:
    """As profiles are named."""
    machine = gpus.installed() if site.size.on_gpu else None
    return machine.gpus[0].name.removeprefix("NVIDIA ").split()[0].lower() if machine else "cpu"
