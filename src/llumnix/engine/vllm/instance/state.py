"""A request on its way: what travels in `Prepare` and `Commit`, encoded with vLLM's own msgpack codec."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from time import time

import msgspec
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request

from llumnix.engine.vllm.between import RequestCodec
from llumnix.policy.prefix import ChunkId
from llumnix.wire.base import Frame

_PASSPORT = "_llumnix_passport"


@dataclass(slots=True)
class Passport:
    """What Llumnix knows of a request beside vLLM: kept on vLLM's `Request`, so it lives exactly as long."""

    original: EngineCoreRequest
    """As the front end sent it: all that is needed to make the request anew elsewhere."""
    chunks: tuple[ChunkId, ...] = ()
    """Names of the beginning of its prompt, where prefixes are told."""
    cached_tokens: int = 0
    """Of its prompt, that were cached here when it came: its turn is by what it needs beside these."""
    expected_hit_tokens: int = 0
    """Of its prompt, that will need no computing here, as far as was known when it came."""
    migrations: int = 0
    moved_s: float | None = None
    preempted_s: float | None = None
    """When it was preempted last after it had made a token here, by the clock of its `arrival_time`; None: never."""
    preempted_tokens: int = 0
    """That it had made then, or when it came here to wait."""
    robbed_s: float | None = None
    """When it began to wait after its instance had died, by the same clock; None: it did not."""
    headed_s: float | None = None
    """Since when it is the first of the queue here, as far as a look found it there, by the clock of the reports."""
    began_s: float = 0.0
    """When it last left the queue here, by the monotonic clock."""
    hits_settle_at: int = 0
    """Step of this engine after which all that it shares with others from the prefix cache is written."""


def stamp(request: Request, original: EngineCoreRequest) -> None:
    setattr(request, _PASSPORT, Passport(original))


def passport_of(request: Request) -> Passport:
    passport: Passport = getattr(request, _PASSPORT)
    return passport


def expected_hit_tokens(request: Request) -> int:
    return passport_of(request).expected_hit_tokens


def waits_again(request: Request, drops_in_flight: bool) -> None:
    """It is being preempted. Who has no token yet waits since it came, and who has made none since it last began to
    wait, since then. Steps in flight still deliver one, unless that is dropped."""
    passport = passport_of(request)
    passport.headed_s = None
    passport.cached_tokens = passport.expected_hit_tokens  # what came before it is computed by now
    made = request.num_output_tokens + (request.num_output_placeholders > 0 and not drops_in_flight)
    if made > passport.preempted_tokens:
        passport.preempted_s, passport.preempted_tokens = time(), made


def waits_on(request: Request) -> None:
    """It comes to wait here, from where it stood still already, or from an instance that died."""
    passport_of(request).preempted_tokens = request.num_output_tokens


def makes_tokens(request: Request) -> bool:
    """A running one: nothing of it is to be computed but its next token."""
    return request.num_output_tokens > 0 and not request.is_prefill_chunk


def arrivals_first(running: list[Request], began: Collection[str], tokens: Mapping[str, int]) -> None:
    """Of those that have just begun, and were given so many `tokens`, those that came with their KV and decode: vLLM
    gives tokens in the order of the batch, and behind a prompt that takes whole steps they would stand still."""
    short = {name for name in began if tokens[name] == 1}
    if short:
        running.sort(key=lambda each: not (each.request_id in short and makes_tokens(each)))


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of `Prepare`: what the target needs to find cached prefixes and compile a grammar."""

    request: bytes
    """First frame of the EngineCoreRequest, in vLLM's encoding. Its large tensors (pixels, prompts given as embeddings)
    come beside the letter, as its freight."""
    output_token_ids: list[int]
    longest_tokens: int
    """That it may come to where it runs. Windows differ where vLLM makes them as long as memory allows."""


class Hand(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of `Commit`: everything that changed since, or that only a stopped request can tell."""

    output_token_ids: list[int]
    """The whole output."""
    computed_tokens: int
    preemptions: int
    preempted_s: float | None
    robbed_s: float | None
    cached_tokens: int
    """Of its prompt, when its computation first began; counts until it has made a token."""
    migrations: int
    reasoning_ended: bool | None
    sampler_state: bytes | None


def identity_of(request: Request, codec: RequestCodec, window_tokens: int) -> tuple[bytes, list[Frame]]:
    """Payload and freight of its `Prepare`. `window_tokens`: of the engine that it runs at."""
    head, *tensors = codec.encode(passport_of(request).original)
    identity = Identity(
        request=bytes(head),
        output_token_ids=list(request.output_token_ids),
        longest_tokens=min(window_tokens, request.num_prompt_tokens + request.max_tokens),
    )
    return msgspec.msgpack.encode(identity), tensors


def hand_of(request: Request, sampler_state: bytes | None) -> bytes:
    structured, passport = request.structured_output_request, passport_of(request)
    return msgspec.msgpack.encode(
        Hand(
            output_token_ids=list(request.output_token_ids),
            computed_tokens=request.num_computed_tokens,
            preemptions=request.num_preemptions,
            preempted_s=passport.preempted_s,
            robbed_s=passport.robbed_s,
            cached_tokens=0 if request.prefill_stats is None else request.prefill_stats.num_cached_tokens,
            migrations=passport.migrations + 1,
            reasoning_ended=None if structured is None else structured.reasoning_ended,
            sampler_state=sampler_state,
        )
    )


def decode_identity(payload: bytes) -> Identity:
    """Raises ValueError on a payload that is not one."""
    return msgspec.msgpack.decode(payload, type=Identity)


def decode_hand(payload: bytes) -> Hand:
    """Raises ValueError on a payload that is not one."""
    return msgspec.msgpack.decode(payload, type=Hand)
