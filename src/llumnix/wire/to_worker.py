"""All that a worker takes from its engine beside the steps: what to pull, what not any more, and who is gone."""

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


class ForgetPeer(Wire, frozen=True, kw_only=True, tag=True):
    """It is gone: nothing of it stays open, but for pulls in flight."""

    addresses: tuple[str, ...]
    """Of the transports of its workers, by rank."""


ToWorker = PullBlocks | CancelPulls | ForgetPeer

WORKER_MAIL: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
