"""All that a worker takes from its engine beside the steps: what to pull, and what not any more."""

from __future__ import annotations

import msgspec

from llumnix.types import RequestId
from llumnix.wire.base import Wire


class PullBlocks(Wire, frozen=True, kw_only=True, tag=True):
    """Answered with a `PullEnded` by each worker."""

    request: RequestId
    epoch: int
    stage: int
    addresses: tuple[str, ...]
    """Of the transports of the peer's workers, by rank."""
    source_blocks: tuple[int, ...]
    target_blocks: tuple[int, ...]
    timeout_s: float


class CancelPulls(Wire, frozen=True, kw_only=True, tag=True):
    """Those of one attempt."""

    request: RequestId
    epoch: int


ToWorker = PullBlocks | CancelPulls

WORKER_MAIL: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
