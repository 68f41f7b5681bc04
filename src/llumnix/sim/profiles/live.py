"""Measures a running OpenAI server and fits a cost profile to it.

Three experiments, all over `/v1/completions` with streamed token ids as prompts, so that lengths are exact:

    prefill   prompts of growing length, alone; the time to the first token
    decode    batches of growing size, short and long contexts; the time between two tokens of each step
    request   the shortest prompt's time to first token, less its prefill: what a request costs beside the steps

`fit` is pure and needs no server. What a client cannot see (blocks, bandwidth between instances, start-up)
comes from the caller.

Where a server has several instances all of them are measured at once, each with the same load: what they share (the
memory of a machine, the front end) is then as busy as in use. A request names its instance by `X-data-parallel-rank`,
also where only some are measured: else the others would get their part of each batch.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from llumnix.client import concurrent_client, unreachable
from llumnix.errors import ServerRefused, UsageError
from llumnix.remote import WANTS_KEY
from llumnix.sim.profiles.cost_model import (
    DecodeProfile,
    HostProfile,
    MemoryProfile,
    MigrationProfile,
    PrefillProfile,
    Profile,
    SchedulerProfile,
)
from llumnix.stream_lines import LineSplitter

Numbers: TypeAlias = NDArray[np.float64]

SETTLE_TOKENS = 4
"""First tokens of a stream that are not timed: the batch is still filling."""

_TOKEN_IDS = 256
"""Prompts are made of ids below this."""

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class PrefillSample:
    tokens: int
    first_token_ms: float


@dataclass(frozen=True, slots=True)
class DecodeSample:
    batch: int
    context_tokens: float
    """Sum of the lengths of all sequences, on average over the steps timed."""
    step_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is sent. Small enough for a CPU by default; a GPU wants longer prompts and larger batches."""

    prompt_tokens: tuple[int, ...] = (16, 64, 128, 256, 512, 1024)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    contexts: tuple[int, ...] = (32, 512)
    """Prompt lengths of the decode experiment."""
    output_tokens: int = 48
    repeats: int = 3
    instances: int = 1
    """Each gets all that is sent, at once."""
    of: int = 1
    """So many the server has, as far as is known. Of several, the first ones are measured, and the others rest."""


async def measure_server(
    url: str, plan: Plan, api_key: str | None = None
) -> tuple[list[PrefillSample], list[DecodeSample]]:
    """Runs the experiments one after the other on an otherwise idle server. Raises ServerRefused if it does not answer
    as it should, UsageError if it wants a key."""
    async with concurrent_client(url, api_key, _TIMEOUT_S) as client:
        try:
            model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
            measuring = _Measuring(client, model, plan)
            await measuring.warm_up()  # the first step of an engine is slow
            prefill = [await measuring.prefill(tokens) for tokens in plan.prompt_tokens]
            decode = [await measuring.decode(batch, context) for context in plan.contexts for batch in plan.batches]
        except httpx.TransportError as error:
            raise unreachable(url, error) from error
        except (httpx.HTTPError, LookupError, TypeError, AttributeError, ValueError) as error:  # as from any JSON
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
                raise UsageError(WANTS_KEY) from error
            raise ServerRefused(f"{url} cannot be measured: {error or type(error).__name__}.") from error
    return prefill, decode


class _Measuring:
    """The experiments, on one connection."""

    def __init__(self, client: httpx.AsyncClient, model: str, plan: Plan) -> None:
        self._client = client
        self._model = model
        self._plan = plan
        self._random = random.Random("profile")

    async def stream(self, prompt_tokens: int, output_tokens: int, instance: int = 0) -> list[float]:
        """When the request was sent, and when each token came. Prompts differ, so no prefix cache helps."""
        several = max(self._plan.instances, self._plan.of) > 1
        headers = {"X-data-parallel-rank": str(instance)} if several else {}
        prompt = [self._random.randrange(3, _TOKEN_IDS) for _ in range(prompt_tokens)]
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        times = [time.perf_counter()]
        async with self._client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
            if response.is_error:
                said = (await response.aread()).decode(errors="replace")[:200]
                raise ValueError(f"HTTP {response.status_code}: {said}")
            splitter = LineSplitter()
            async for data in response.aiter_bytes():
                for line in splitter.feed(data):
                    if line.startswith(b"data: ") and line != b"data: [DONE]":
                        if msgspec.json.decode(line[6:]).get("error"):
                            raise ValueError(line[6:200].decode(errors="replace"))
                        times.append(time.perf_counter())
        if len(times) == 1:
            raise ValueError("a stream ended without a token")
        return times

    async def warm_up(self) -> None:
        await self._on_each(1, 32, 8)

    async def _on_each(self, count: int, prompt_tokens: int, output_tokens: int) -> list[list[float]]:
        """So many streams at once on every instance. Raises what the first that failed met."""
        try:
            async with asyncio.TaskGroup() as group:
                streams = [
                    group.create_task(self.stream(prompt_tokens, output_tokens, instance))
                    for instance in range(self._plan.instances)
                    for _ in range(count)
                ]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return [stream.result() for stream in streams]

    async def prefill(self, tokens: int) -> PrefillSample:
        """The quickest of the repeats: everything that disturbs only adds."""
        firsts = []
        for _ in range(self._plan.repeats):
            together = await self._on_each(1, tokens, 2)
            firsts.append(statistics.mean(times[1] - times[0] for times in together))
        return PrefillSample(tokens, min(firsts) * 1e3)

    async def decode(self, batch: int, context: int) -> DecodeSample:
        """The median gap between tokens while all of the batch decode."""
        output = self._plan.output_tokens
        streams = await self._on_each(batch, context, output)
        gaps: list[float] = []
        begun = max(stream[1] for stream in streams)
        over = min(stream[-1] for stream in streams)
        for stream in streams:
            times = [at for at in stream[1 + SETTLE_TOKENS :] if begun <= at <= over]
            gaps += [late - early for early, late in pairwise(times)]
        if not gaps:
            raise ValueError(f"the {batch} streams of a batch did not overlap; give a larger --output-tokens")
        return DecodeSample(batch, batch * (context + output / 2), statistics.median(gaps) * 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """What a client cannot measure. Raises UsageError for what cannot be."""

    total_blocks: int
    block_tokens: int = 16
    block_bytes: int = 1 << 20
    state_blocks: int = 0
    gigabytes_per_s: float = 1.0
    stage_ms: float = 5.0
    slowdown: float = 0.05
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    start_up_s: float = 10.0

    def __post_init__(self) -> None:
        _ = self.memory, self.migration, self.scheduler

    @property
    def memory(self) -> MemoryProfile:
        return MemoryProfile(
            total_blocks=self.total_blocks,
            block_tokens=self.block_tokens,
            block_bytes=self.block_bytes,
            state_blocks=self.state_blocks,
        )

    @property
    def migration(self) -> MigrationProfile:
        return MigrationProfile(gigabytes_per_s=self.gigabytes_per_s, stage_ms=self.stage_ms, slowdown=self.slowdown)

    @property
    def scheduler(self) -> SchedulerProfile:
        return SchedulerProfile(max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens)


def fit(
    prefill: Sequence[PrefillSample], decode: Sequence[DecodeSample], unseen: Unseen, name: str, origin: str
) -> Profile:
    """Least squares, coefficients not below 0. Raises UsageError with too few samples to fit anything."""
    if len({sample.tokens for sample in prefill}) < 2:
        raise UsageError("A profile needs prompts of two lengths or more.")
    if len({sample.batch for sample in decode}) < 2:
        raise UsageError("A profile needs batches of two sizes or more.")
    tokens = np.array([sample.tokens for sample in prefill], dtype=float)
    first_ms = np.array([sample.first_token_ms for sample in prefill])
    base, slope, square = least_squares(np.stack([np.ones_like(tokens), tokens, tokens**2], axis=1), first_ms)
    sizes = sorted({sample.batch for sample in decode})
    columns = [[float(sample.batch == size) for size in sizes] + [sample.context_tokens] for sample in decode]
    *sizes_ms, context_ms = least_squares(np.array(columns), np.array([sample.step_ms for sample in decode]))
    # A prefill step costs at least the smallest decode step; the rest of the time to first token is the front end's.
    base_ms = min(base, sizes_ms[0])
    return Profile(
        name=name,
        origin=origin,
        memory=unseen.memory,
        prefill=PrefillProfile(base_ms=base_ms, per_token_ms=max(slope, 1e-6), per_token_squared_ms=square),
        decode=DecodeProfile(
            batch=tuple(sizes),
            batch_ms=tuple(max(one, 1e-3) for one in sizes_ms),
            per_context_token_ms=context_ms,
        ),
        migration=unseen.migration,
        scheduler=unseen.scheduler,
        host=HostProfile(request_ms=max(0.0, base - base_ms), start_up_s=unseen.start_up_s),
    )


def worst_error(
    profile: Profile, prefill: Sequence[PrefillSample], decode: Sequence[DecodeSample]
) -> tuple[float, float]:
    """Largest relative error of the fit on its own samples: of first tokens, of decode steps."""

    def error(fitted_ms: float, measured_ms: float) -> float:
        return abs(fitted_ms / measured_ms - 1)

    request_ms, per_token_ms = profile.host.request_ms, profile.decode.per_context_token_ms
    return (
        max(error(profile.prefill.step_ms(one.tokens) + request_ms, one.first_token_ms) for one in prefill),
        max(
            error(profile.decode.batch_step_ms(one.batch) + per_token_ms * one.context_tokens, one.step_ms)
            for one in decode
        ),
    )


def least_squares(columns: Numbers, values: Numbers) -> list[float]:
    """Weighted to relative errors; what comes out negative is set to 0 and the rest fitted again."""
    weights = 1.0 / values
    active = list(range(columns.shape[1]))
    while True:
        solution = np.linalg.lstsq(columns[:, active] * weights[:, None], values * weights, rcond=None)[0]
        negative = [index for index, value in zip(active, solution, strict=True) if value < 0]
        if not negative:
            break
        active = [index for index in active if index not in negative]
        if not active:
            break
    found = dict(zip(active, solution, strict=True))
    return [float(found.get(index, 0.0)) for index in range(columns.shape[1])]
