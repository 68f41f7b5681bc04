"""What a live migration costs the client that streams, and its neighbours (the paper's Figure 10), on any engine.

    python benchmarks/migration_downtime.py --out DIR [--lengths 256,512,…] [--rounds N] [--model MODEL -- vLLM flags]
    python benchmarks/migration_downtime.py --family granite4

One run measures, length by length and round after round, so that a change of the machine's mood meets all alike:

- *migration*: a stream is moved back and forth by `POST /llumnix/v1/migrations`. Downtime is the gap at the
  hand-over less a normal step, both seen by the client: the gap before the first piece that came after the
  server noted the new owner's first token (`at` in its record of the move; both read the same machine's clock).
- *blocking copy*: the same on a second server that copies nothing before the hand-over and everything in it.
- *recompute*: time to the first token of a new request whose prompt is that long.
- *neighbours*: steps of other requests in the source's batch while a sequence of that length is being copied out of
  it (until the hand-over begins), beside as many steps just before, with the same batch, after an order that was
  refused: what the order itself costs (HTTP, a look at every instance) is no cost of migration.

Prefix caching is off, and prompts differ: every move copies every block, which is checked. Of hybrid models (--family)
a state that is overwritten in place is copied in the hand-over alone, whatever the length.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import aiohttp
from _downtime_figures import MOST_STEPS, Figures, check_copied, draw, judged, print_table, write_csv
from families.table import FAMILIES, family_engine_flags
from frame.admin import Admin
from frame.arguments import at_least_one, folder, not_negative, whole, whole_numbers
from frame.models import paced, tiny_engine_flags
from frame.server import llumnix_server
from frame.stream import COMPLETIONS, Output, Streaming, exactly, open_session, served_model, stream
from frame.verdict import conclude

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
ROOM_TOKENS = 2048
"""The window is this much longer than the longest sequence measured."""
QUIET_PIECES = 20
"""Pieces between two moves: gaps of nothing but decoding."""
PLAIN_TEXT = range(64)
"""Token ids to make prompts of: ASCII in the tiny model. Bytes that are no text make detokenisers slow."""
HOME, AWAY = "i0", "i1"
FEWEST_STEPS = 2
"""Of a neighbour, per move."""
TRIES = 3
"""A refusal is cheap and no error, but too many are."""
NEIGHBOURS = 4
NEIGHBOUR_PROMPT = 64


@dataclass(frozen=True, slots=True)
class Move:
    posted_s: float
    downtime_s: float
    told_s: float
    step_s: float
    handover_from_s: float
    """When the last piece before the hand-over came."""
    bytes: int
    copy_s: float  # from the order to the hand-over
    stages: int


class Client:
    """Talks to one server."""

    def __init__(self, session: aiohttp.ClientSession, model: str, rng: random.Random) -> None:
        self.session, self.model, self._rng = session, model, rng
        self._admin = Admin(session)
        self._ids = 0
        self.refused: list[str] = []

    def body(self, prompt_tokens: int, output_tokens: int) -> bytes:
        """Of a request with a random prompt of its own."""
        return exactly(self.model, self._rng.choices(PLAIN_TEXT, k=prompt_tokens), output_tokens)

    @asynccontextmanager
    async def running(self, prompt_tokens: int, output_tokens: int) -> AsyncIterator[Streaming]:
        """A stream while it streams, on instance i0 at first; the request is aborted at the end."""
        self._ids += 1
        streaming = Streaming(self.session, self.body(prompt_tokens, output_tokens), name=f"downtime-{self._ids}")
        try:
            await streaming.pieces(1)
            if await self._admin.where(streaming.id) != HOME:
                await self._post_move(streaming, HOME)
            yield streaming
        finally:
            await streaming.cancel()

    async def _noted_at(self, streaming: Streaming) -> float:
        """When the server saw the first token after the stream's last move; seconds since the epoch."""
        return next(row.at_s for row in await self._admin.moves(8) if row.request_id == streaming.id)

    async def _post_move(self, streaming: Streaming, target: str) -> tuple[float, dict[str, Any]]:
        """When the move was asked for, and what the server tells of it. A refusal is kept, and the move tried again."""
        for _ in range(TRIES):
            posted_s = time.monotonic()
            status, told = await self._admin.migrate(streaming.id, target)
            if status == 200:
                return posted_s, told
            self.refused.append(str(told))
            await asyncio.sleep(0.2)
        raise SystemExit(f"a move was refused {TRIES} times: {told}")

    async def ask_in_vain(self, streaming: Streaming, here: str) -> float:
        """Asks to move the stream to where it is, which the server looks into and refuses; returns when."""
        await streaming.more_pieces(QUIET_PIECES)
        asked_s = time.monotonic()
        status, told = await self._admin.migrate(streaming.id, here)
        if status != 409:
            raise SystemExit(f"a move to itself was not refused: {told}")
        return asked_s

    async def move(self, streaming: Streaming, target: str) -> Move:
        """Moves the stream while it decodes, and takes the time around. Raises SystemExit if it cannot be moved."""
        await streaming.more_pieces(QUIET_PIECES)
        posted_s, told = await self._post_move(streaming, target)
        came_s = await self._noted_at(streaming) - time.time() + time.monotonic()
        await streaming.more_pieces(2)
        gaps = list(pairwise(streaming.output.times_s))
        quiet = [gap for gap in gaps if gap[1] <= posted_s][-QUIET_PIECES:]
        step_s = statistics.median(map(_length, quiet))
        handover = next(gap for gap in gaps if gap[1] >= came_s)
        return Move(
            posted_s=posted_s,
            downtime_s=_length(handover) - step_s,
            told_s=(told["downtime_ms"] or 0.0) / 1e3,
            step_s=step_s,
            handover_from_s=handover[0],
            bytes=told["bytes"],
            copy_s=told["copy_ms"] / 1e3,
            stages=told["stages"],
        )


def _length(gap: tuple[float, float]) -> float:
    return gap[1] - gap[0]


async def migrate_to_and_fro(client: Client, length: int, moves: int) -> list[Move]:
    """Moves of one stream that is about `length` tokens long half way through."""
    tokens = moves * 2 * QUIET_PIECES + 64
    prompt = max(32, length - tokens // 2)
    async with client.running(prompt, length + ROOM_TOKENS - prompt) as streaming:
        return [await client.move(streaming, AWAY if number % 2 == 0 else HOME) for number in range(moves)]


async def recompute(client: Client, length: int) -> float:
    output = await stream(client.session, COMPLETIONS, client.body(length, 1))
    if output.failure:
        raise SystemExit(f"a request of {length} tokens failed: {output.failure}")
    return output.ttft_s


async def watch_neighbours(client: Client, length: int, moves: int) -> tuple[list[float], list[float]]:
    """Steps of the other requests on the source: off, on. Pairs of equal weight: see `first_steps`."""
    off: list[float] = []
    on: list[float] = []
    async with AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(client.running(NEIGHBOUR_PROMPT, length + ROOM_TOKENS - NEIGHBOUR_PROMPT))
            for _ in range(NEIGHBOURS)
        ]
        prompt = max(32, length - 64)
        streaming = await stack.enter_async_context(client.running(prompt, length + ROOM_TOKENS - prompt))
        for _ in range(moves):
            asked_s = await client.ask_in_vain(streaming, HOME)
            move = await client.move(streaming, AWAY)
            for other in (each.output for each in others):
                steps = min(MOST_STEPS, len(other.gaps_s(move.posted_s, move.handover_from_s)))
                if steps >= FEWEST_STEPS:
                    on.append(first_steps(other, move.posted_s, steps))
                    off.append(first_steps(other, asked_s, steps))
            await client.move(streaming, HOME)
    return off, on


def first_steps(output: Output, after_s: float, steps: int) -> float:
    """Mean of the first steps after a moment.

    Counted, not timed: a window that ends when the copy does is the longer the slower the machine was in it, and
    would hold the slow moments. A mean, because a client on a busy machine sees pieces come two at a time.
    """
    return statistics.fmean(output.gaps_s(after_s, math.inf)[:steps])


async def measure(live: str, blocking: str, options: argparse.Namespace) -> dict[int, Figures]:
    """The two are the URLs of the servers."""
    rng = random.Random(options.seed)
    figures: dict[int, Figures] = defaultdict(Figures)
    async with (
        open_session(live, timeout_s=None, keep_alive=True) as one,
        open_session(blocking, timeout_s=None, keep_alive=True) as other,
    ):
        model = await served_model(one)
        client, blocker = Client(one, model, rng), Client(other, model, rng)
        for round_ in range(options.rounds + 1):
            for length in options.lengths:
                mine = Figures() if round_ == 0 else figures[length]  # the first round warms up
                await measure_moves(client, length, mine, options.moves)
                await measure_blocking(blocker, length, mine, options.moves)
                await measure_beside(client, length, mine, options.moves)
                print(f"round {round_} of {options.rounds}, length {length:<8}", end="\r", flush=True)
        for why in client.refused + blocker.refused:
            print(f"refused, and tried again: {why}")
    return dict(figures)


async def measure_moves(client: Client, length: int, mine: Figures, moves: int) -> None:
    for move in await migrate_to_and_fro(client, length, moves):
        mine.migration.append(move.downtime_s)
        mine.told.append(move.told_s)
        mine.step.append(move.step_s)
        mine.mib.append(move.bytes / 2**20)
        mine.gb_per_s.append(move.bytes / 1e9 / max(move.copy_s, 1e-6))
        mine.stages.append(move.stages)


async def measure_blocking(blocker: Client, length: int, mine: Figures, moves: int) -> None:
    mine.blocking += [move.downtime_s for move in await migrate_to_and_fro(blocker, length, moves)]


async def measure_beside(client: Client, length: int, mine: Figures, moves: int) -> None:
    """What the same length costs without a move, and what a move costs others."""
    mine.recompute += [await recompute(client, length) for _ in range(2)]
    off, on = await watch_neighbours(client, length, moves)
    mine.neighbours_off += off
    mine.neighbours_on += on


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Downtime of live migration, blocking copy and recompute by length.")
    parser.add_argument(
        "--lengths", type=whole_numbers, default=",".join(map(str, LENGTHS)), help="tokens, with commas between"
    )
    parser.add_argument("--rounds", type=at_least_one, default=3, help="times that all lengths are gone through (3)")
    parser.add_argument("--moves", type=at_least_one, default=6, help="moves of each stream (6)")
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--out", type=folder, help="folder for figure10_live.png and figure10_live.csv")
    parser.add_argument("--family", choices=FAMILIES, help="instead of the tiny model, one of families/table.py")
    parser.add_argument("--model", help="instead of the tiny model; flags for vLLM follow behind --")
    parser.add_argument("--step-ms", type=not_negative, default=0.0, help="each step lasts that long (0: as it comes)")
    parser.add_argument("engine_flags", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model and options.step_ms:
        parser.error("--step-ms is for the tiny model and for --family")
    return options


def main() -> int:
    options = parse()
    common = ("--no-migration", "--no-enable-prefix-caching")
    with ExitStack() as stack:
        engine = [*_engine_flags(options, stack), *options.engine_flags]
        live = stack.enter_context(llumnix_server(engine, *common, instances=2))
        all_at_once = ("--max-stages", "1", "--last-stage-max-blocks", "1000000")
        blocking = stack.enter_context(llumnix_server(engine, *common, *all_at_once, instances=2))
        figures = asyncio.run(measure(live.url, blocking.url, options))
    print_table(figures)
    check_copied(figures)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(
            figures,
            options.out / "figure10_live.png",
            f"Live migration between two engines: {engine[0].split('/')[-1]}",
        )
        write_csv(figures, options.out / "figure10_live.csv")
    return conclude(*judged(figures))


def _engine_flags(options: argparse.Namespace, stack: ExitStack) -> list[str]:
    window = max(options.lengths) + ROOM_TOKENS + 64
    if options.model:
        return [options.model, "--max-model-len", str(window)]
    if options.family:
        flags = [*stack.enter_context(family_engine_flags(options.family)), "--max-model-len", str(window)]
    else:
        flags = tiny_engine_flags(window, kv_mib=128)
    return stack.enter_context(paced(flags, options.step_ms, 0.0)) if options.step_ms else flags


if __name__ == "__main__":
    sys.exit(main())
