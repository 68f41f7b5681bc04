"""What a front end knows of one sequence it streams: enough to measure its moves and to replay it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import torch
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.utils import length_from_prompt_token_ids_or_embeds
from vllm.v1.engine import EngineCoreRequest

from llumnix.control.front_end_events import Arrived, NeededAdapter
from llumnix.control.messages import Moved
from llumnix.control.stream import Stream
from llumnix.engine.vllm.between import RequestCodec, Resume, chunks_of, reads_cache
from llumnix.journal.story import Story
from llumnix.types import Epoch, InstanceId, Priority, RequestId

_SMOOTHING = 0.1


class Passed(NamedTuple):
    """Its tokens come from the target of attempt `epoch`."""

    epoch: Epoch
    old_owner: InstanceId


class SeenMove(NamedTuple):
    """A move as its client saw it, of which the old owner has said nothing yet."""

    old_owner: InstanceId
    at_s: float
    """Of the first token from the new owner."""
    downtime_s: float | None
    """None: nothing was said before it."""


@dataclass(slots=True, eq=False)
class Session:
    request: EngineCoreRequest
    """As vLLM's front end made it; its `request_id` is what vLLM's output processor knows."""
    engine_id: str
    """The id inside the engines: a new one after each token replay."""
    stream: Stream
    story: Story
    has_input: bool = field(init=False)
    """It is a streaming input session whose client may send further chunks."""
    unanswered: int = 1
    """Chunks of its input whose output has not come to an end; other requests have one."""
    keeps_media: bool = True
    """Once it has made a token, too: it can still be replayed."""
    tokens: list[int] = field(default_factory=list)
    """Output tokens that reached the client."""
    thrown_away: int = 0
    """Tokens that were drawn for it with its seed, and that nobody got."""
    first_token_s: float | None = None
    last_token_s: float | None = None
    largest_gap_s: float = 0.0
    """Longest wait between two tokens."""
    step_s: float = 0.0
    """Time between two tokens, smoothed."""
    move: Moved | None = None
    """A move of which the first token from the new owner is still to come."""
    before_move_s: float | None = None
    """When the last token from the old owner reached the client, as long as the first from the new one is to come."""
    passed: Passed | None = None
    """By its last move."""
    seen: dict[Epoch, SeenMove] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.has_input = self.request.resumable

    def takes(self, chunk: EngineCoreRequest) -> None:
        """Was sent to its engine, which computes one after the other. The last one says only that it is the last."""
        if chunk.resumable:
            self.unanswered += 1
        else:
            self.has_input = False

    @property
    def is_over(self) -> bool:
        """Its engine says no more. Each chunk ends with a finish reason of its own."""
        return not (self.has_input or self.unanswered)

    @property
    def id(self) -> str:
        return self.request.request_id

    @property
    def client_id(self) -> str:
        return client_id_of(self.request)

    def tokens_delivered(self, token_ids: list[int], now: float) -> float | None:
        """Takes note of tokens; returns the downtime in seconds if they are the first after a move."""
        self.tokens += token_ids
        last, self.last_token_s = self.last_token_s, now
        if last is None:
            self.first_token_s = now
            if not self.keeps_media:
                self.request = msgspec.structs.replace(self.request, mm_features=None, prompt_embeds=None)
        elif now - last > self.largest_gap_s:
            self.largest_gap_s = now - last
        if self.before_move_s is not None:
            downtime_s = max(0.0, now - self.before_move_s - self.step_s)
            self.before_move_s = None
            return downtime_s
        if last is not None:
            gap = now - last
            self.step_s = gap if self.step_s == 0.0 else self.step_s + _SMOOTHING * (gap - self.step_s)
        return None

    def as_resume(self, renamed: EngineCoreRequest, codec: RequestCodec) -> Resume:
        """How an instance is told to go on where it stands. `renamed`: its request under a new engine id."""
        return Resume(
            request_id=renamed.request_id,
            front_end=renamed.client_index,
            arrived_unix_s=renamed.arrival_time,
            request=[memoryview(frame) for frame in codec.encode(renamed)],
            output_token_ids=list(self.tokens),
            thrown_away=self.thrown_away,
        )

    @property
    def moves(self) -> bool:
        """Something of its last move is still to come."""
        return self.move is not None or self.before_move_s is not None or bool(self.seen)

    def passes(self, epoch: Epoch, old_owner: InstanceId, now: float) -> None:
        """From here on its tokens come from another instance."""
        self.passed, self.before_move_s = Passed(epoch, old_owner), self.last_token_s
        if self.last_token_s is None:
            self.saw_move(now, None)

    def saw_move(self, at_s: float, downtime_s: float | None) -> None:
        assert self.passed is not None
        self.seen[self.passed.epoch] = SeenMove(self.passed.old_owner, at_s, downtime_s)

    def forget_words_of(self, old_owner: InstanceId) -> None:
        self.seen = {epoch: seen for epoch, seen in self.seen.items() if seen.old_owner != old_owner}

    def begins_anew(self) -> None:
        """Under another id, of which no instance has a word to say yet."""
        self.passed, self.seen = None, {}
        if self.move is None:
            self.before_move_s = None


def client_id_of(request: EngineCoreRequest) -> str:
    """The id that the client was given (vLLM appends a random suffix, and prefixes children of n > 1)."""
    return request.external_req_id or request.request_id


def arrival(
    request: EngineCoreRequest,
    at_s: float,
    *,
    only_on: tuple[InstanceId, ...] | None,
    not_exact: str,
    chunk_tokens: int = 0,
) -> Arrived:
    """How the front end's mind is told of it. `chunk_tokens`: by which its prompt's beginning is named, if at all: none
    of one that may not begin with what is cached."""
    lora = request.lora_request
    return Arrived(
        at_s,
        RequestId(request.request_id),
        prompt_tokens=prompt_tokens(request),
        priority=Priority(request.priority),
        only_on=only_on,
        adapter=None if lora is None else NeededAdapter(lora.lora_int_id, lora.lora_name),
        not_exact=not_exact,
        more_comes=request.resumable,
        chunks=chunks_of(request, chunk_tokens if reads_cache(request) else 0),
    )


def why_not_exact(request: EngineCoreRequest, seeds_lost: str) -> str:
    """Why a stream that has made a token cannot be continued exactly by computing its tokens anew, or an empty
    string. `seeds_lost`: why none with a seed can, by word of the engines."""
    sampling = request.sampling_params
    if request.resumable:
        return "it is a streaming input session"
    if sampling is None:
        return "it is not a generation"
    if sampling.seed is not None and sampling.temperature > 0:
        return seeds_lost
    return ""


def prompt_tokens(request: EngineCoreRequest) -> int:
    """Of one given as embeddings, too."""
    return length_from_prompt_token_ids_or_embeds(request.prompt_token_ids, request.prompt_embeds)


def media_bytes(request: EngineCoreRequest) -> int:
    """Of what it has beside tokens: pixels and the like as the model takes them, a prompt given as embeddings."""
    parts = [request.prompt_embeds, *(each.data for each in request.mm_features or ())]
    return sum(_bytes(part) for part in parts)


def _bytes(part: Any) -> int:
    """Of vLLM's nested tensors (vllm/multimodal/inputs.py)."""
    if isinstance(part, torch.Tensor):
        return part.nbytes
    if isinstance(part, MultiModalKwargsItem):
        return sum(_bytes(element.data) for element in part.values())
    return sum(_bytes(each) for each in part) if isinstance(part, list | tuple) else 0
