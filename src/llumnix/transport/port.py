"""The port: what a worker needs to move KV blocks between instances.

One transport per worker (tensor-parallel rank). It is made over one pool of blocks, serves that pool to
whoever knows the secret, and pulls blocks of other pools into its own::

    pool = pool_of(kv_views, fingerprint="llama-8b/bf16/tp0of2")     # transport.staging: vLLM's KV tensors
    transport = SocketTransport(pool, secret, SocketOptions(folder=run_dir))
    ...                                    # transport.address travels in the control plane
    pull = transport.pull(peer_address, [7, 8, 31], [2, 90, 4], timeout_s=5.0, on_done=..., on_released=...)
    pull.cancel()                          # when the migration is called off
    transport.close()

The target pulls because only it knows when its blocks are ready to be written, and because a puller that
dies leaves nothing behind at the source. The source must keep the blocks it named unchanged (pinned) until
it hears from the target; a transport does not know who holds a block.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from llumnix.errors import LlumnixError

IoVecs = NDArray[np.uint64]
"""Pieces of host memory, as the kernel's `struct iovec`: shape (n, 2), a row is (address, bytes)."""


BlockIds = Sequence[int] | NDArray[np.integer]
Batches = Generator[IoVecs, None, None]


class TransportError(LlumnixError):
    """A transport cannot be made or used as asked; `str(error)` is one sentence."""


class PoolShape(msgspec.Struct, frozen=True, kw_only=True):
    """What two ends must agree on before a byte moves.

    A pool is a list of regions (for a KV cache: the layers). Every region has `num_blocks` chunks;
    block `b` of the pool is chunk `b` of every region, in order.
    """

    fingerprint: str
    """Says what the bytes mean: model, data type, layout, tensor-parallel rank. Equal or refused."""
    num_blocks: int
    """May differ between the two ends."""
    chunk_bytes: tuple[int, ...]
    """Bytes of a chunk, per region."""

    @property
    def block_bytes(self) -> int:
        return sum(self.chunk_bytes)

    def mismatch(self, other: PoolShape) -> str | None:
        """Why blocks of `other` cannot be copied into blocks of this pool, or None when they can."""
        if self.fingerprint != other.fingerprint:
            return f"the pools hold different things: {self.fingerprint!r} here, {other.fingerprint!r} there"
        if len(self.chunk_bytes) != len(other.chunk_bytes):
            return f"the pools have {len(self.chunk_bytes)} regions here, {len(other.chunk_bytes)} there"
        for region, (here, there) in enumerate(zip(self.chunk_bytes, other.chunk_bytes, strict=True)):
            if here != there:
                return f"chunks of region {region} have {here} bytes here, {there} there"
        return None


class Pool(Protocol):
    """Memory that blocks are served from and received into, as batches of pieces of host memory.

    The byte order is the same for every pool, so that any two can be the ends of a pull: region after
    region, in each the chunks in the order of the ids asked for. Used by several threads at once.
    """

    @property
    def shape(self) -> PoolShape: ...

    @property
    def streams(self) -> int:
        """How many streams of bytes, each way, a large pull is worth."""
        ...

    def reading(self, blocks: BlockIds, until_s: float) -> Batches:
        """Yields pieces to send. A batch stays valid until the next one is asked for.

        Raises TimeoutError when it has to wait beyond `until_s` (of `time.monotonic`), and TransportError when the
        memory cannot be copied (a device may have none left, or break)."""
        ...

    def writing(self, blocks: BlockIds, until_s: float) -> Batches:
        """Yields pieces to fill. Asking for the next batch says that this one is filled; when the
        iterator ends, all bytes are in the blocks. Closing it early abandons the batch at hand:
        nothing is written any more when the close returns. Raises as `reading`."""
        ...


class PullResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a pull ended. `reason` is empty when it worked, else one sentence."""

    ok: bool
    reason: str = ""
    bytes_read: int = 0
    """Bytes of blocks that arrived. After a failure the target blocks hold garbage."""
    seconds: float = 0.0
    quarantined: bool = False
    """Late bytes may still land in the target blocks: do not reuse them before `on_released`."""


class PullInFlight(Protocol):
    """A pull in flight."""

    def cancel(self) -> None:
        """Ends the pull early; `on_done` reports a failure, unless it ended before. Never blocks."""
        ...

    def wait(self, timeout_s: float) -> PullResult | None:
        """The result, or None when there is none within `timeout_s`. For tests and tools: workers use `on_done`."""
        ...


class Transport(Protocol):
    """Moves blocks between a pool of its own and the pools of its peers."""

    @property
    def address(self) -> str:
        """Where peers pull from: an opaque string that names this incarnation and each way to reach it."""
        ...

    def pull(
        self,
        source_address: str,
        source_blocks: BlockIds,
        target_blocks: BlockIds,
        timeout_s: float,
        *,
        on_done: Callable[[PullResult], None],
        on_released: Callable[[], None],
    ) -> PullInFlight:
        """Copies the peer's `source_blocks` into `target_blocks` (same order) in a background thread.

        `on_done` is called exactly once, from that thread, at most `timeout_s` seconds from now (a little
        more on a loaded machine); whatever the peer does, a failure is a result and not an exception.
        If the result says `quarantined`, `on_released` is called once, later, when the target blocks may be
        reused; otherwise never. Neither may block.

        Raises ValueError for ids that are not blocks of this pool, repeated target ids, or lists that differ
        in length, and TransportError after `close`: those are bugs of the caller.
        """
        ...

    def forget(self, source_address: str) -> None:
        """That peer is gone: nothing of it is kept open, but for pulls in flight. A dead one's memory on a device is
        not free before."""
        ...

    def close(self) -> None:
        """Stops serving, ends every pull (their `on_done` run first), joins all threads. May be called twice."""
        ...
