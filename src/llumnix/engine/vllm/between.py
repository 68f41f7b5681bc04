"""What front ends and instances say to each other inside vLLM's own messages: known to both, so that neither imports
the other."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from llumnix.policy.prefix import ChunkId, chunk_ids, salt_of
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.wire.base import Frame

NOTICE = "llumnix"
"""Key of a notice in `EngineCoreOutput.kv_transfer_params`: a free-form field that vLLM passes through."""

TURNED_AWAY = "llumnix-turned-away"
"""As `NOTICE`, of an engine that ends: it did not take the request, or gave it up. Goes on elsewhere."""

THROWN_AWAY = "llumnix-thrown-away"
"""As `NOTICE`: a token was drawn for the request with its seed that nobody will get (instance/thrown_away.py)."""

LAST_WORD = "llumnix-last-word"
"""As `NOTICE`, of no request: nothing follows in this stream."""


FURTHER_CHUNK = -1
"""`EngineCoreRequest.current_wave` of a further chunk of a streaming input session: no dispatch, whatever has become of
the session. vLLM counts waves, from 0 on, where engines are data parallel, and looks at them nowhere else."""


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's answer to a front end's first call."""

    ready: bytes
    """vLLM's ready response."""
    snapshot: InstanceSnapshot
    """Of this moment: what it counts of this front end's requests, an earlier one of this index sent."""
    seeds_lost: str = ""
    """Why a request with a seed cannot go on exactly elsewhere when this engine has died; empty: it can."""


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """`request`: the frames of the EngineCoreRequest in vLLM's encoding, under its new engine id."""

    request_id: str
    front_end: int
    arrived_unix_s: float
    """At the front end."""
    request: list[memoryview]
    output_token_ids: list[int]
    thrown_away: int = 0
    """Tokens that were drawn beside these."""


def chunks_of(
    request: EngineCoreRequest,
    chunk_tokens: int,
    token_ids: Sequence[int] | None = None,
    known: tuple[ChunkId, ...] = (),
) -> tuple[ChunkId, ...]:
    """Names of the beginning of its prompt, or of its `token_ids` so far, of which the first are `known`: equal where
    vLLM's hashes of blocks are (of `generate_block_hash_extra_keys`), but none for one with pixels or embeddings, or
    with more of its prompt to come; nor in chunks of 0 tokens."""
    if not chunk_tokens or not names_beginning(request):
        return ()
    return chunk_ids(token_ids or request.prompt_token_ids or (), chunk_tokens, salt_of_request(request), known)


def salt_of_request(request: EngineCoreRequest) -> int:
    """What tells its prompt from another one of the same tokens."""
    lora = request.lora_request
    words = ("", "") if lora is None else (lora.lora_name, lora.lora_path)
    return salt_of(*words, request.cache_salt or "")


def names_beginning(request: EngineCoreRequest) -> bool:
    """Whether the tokens of its prompt name what it begins with."""
    return not request.mm_features and request.prompt_embeds is None and not request.resumable


def reads_cache(request: EngineCoreRequest) -> bool:
    """Whether vLLM has it begin with what is cached of its prompt: not if each token of that is asked about (its log
    probabilities, a pooling by token). As `Request.get_skip_reading_prefix_cache` has it."""
    asked = (request.sampling_params, request.pooling_params)
    return not any(each is not None and each.skip_reading_prefix_cache for each in asked)


class RequestCodec:
    """vLLM's own msgpack codec for its requests. Not thread safe: one per thread.

    It refuses to pickle unless VLLM_ALLOW_INSECURE_SERIALIZATION is set, so nothing here is pickled.
    """

    def __init__(self) -> None:
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)

    def encode(self, request: EngineCoreRequest) -> list[Frame]:
        """One frame, and one more for each large tensor: those are not copied, so they change with the tensors."""
        return list(self._encoder.encode(request))  # type: ignore[arg-type]

    def decode(self, frames: Sequence[Frame]) -> EngineCoreRequest:
        """Its tensors lie where the frames are. PyTorch wants memory that could be written to: what is not is copied.

        Raises whatever vLLM's decoder does with frames that are not of a request."""
        head, *tensors = frames
        writable = [bytearray(frame) if memoryview(frame).readonly else frame for frame in tensors]
        request: EngineCoreRequest = self._decoder.decode([head, *writable])
        return request
