"""The blocks of requests that are on their way in, and the pulls that fill them."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.v1.request import Request

from llumnix.control.messages import Commit, Copy
from llumnix.engine.vllm.instance.early_pulls import EarlyPulls, Key, LaidOut, Origin, Refusal, order_to_pull
from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.workers import Workers
from llumnix.wire.to_instance import PullEnded
from llumnix.wire.to_worker import CancelPulls, PullBlocks

PullName = tuple[int, int]
"""Stage and worker rank."""


@dataclass(slots=True)
class Reservation:
    request: Request
    """Not yet known to vLLM's scheduler; only its block table is."""
    keeps_slot: bool
    origin: Origin
    stage: int = 0
    """The last one that is here."""
    here_blocks: int = 0
    """Blocks of the sequence that are here."""
    laid_out: bool = False
    """A pull of the next blocks may have begun."""
    awaited: bool = False
    """The llumlet waits for the end of what is being pulled."""
    pulling: set[PullName] = field(default_factory=set)
    held_back: PullBlocks | None = None
    """A pull into blocks that a step in flight uses, for requests that had them before."""
    failed: str = ""
    last: bool = False
    """What is being pulled are its last blocks: it stands still until they are here."""
    bytes_read: int = 0
    """Of the stage that is being pulled, over all ranks."""
    quarantined: set[PullName] = field(default_factory=set)
    """Pulls that were given up while late bytes may still land."""
    dropped: bool = False


class ArrivingBlocks:
    """Called on the engine's main thread only."""

    def __init__(self, scheduler: MigrationSupport, workers: Workers, early: EarlyPulls) -> None:
        self._scheduler = scheduler
        self._workers = workers
        self._early = early

    def lay_out(self, key: Key, reservation: Reservation) -> None:
        """From here on the next blocks may come whenever the source names them, unless a step in flight uses theirs."""
        if not reservation.keeps_slot or len(reservation.origin.addresses) != self._workers.count:
            return
        tables, first = self._scheduler.tables, reservation.here_blocks
        layout, states = tables.layout(key[0]), tables.states.reserved_ids(key[0])
        if not self._scheduler.steps.may_touch((*layout.after(first), *states)):
            reservation.laid_out = True
            self._early.lay_out(key, LaidOut(reservation.origin, reservation.stage + 1, first, layout, states))

    def begin_no_more(self, key: Key, reservation: Reservation) -> PullBlocks | None:
        """What has begun already, if anything has, must end before its blocks are given back."""
        if not reservation.laid_out:
            return None
        reservation.laid_out = False
        begun = self._early.take_back(key)
        if begun is not None:
            self._expect_end(reservation, begun.stage)
        return begun

    def pull(self, key: Key, reservation: Reservation, message: Copy | Commit) -> bool:
        """See `IncomingRequests`."""
        scheduler = self._scheduler
        begun = self.begin_no_more(key, reservation)
        end = message.first_block + message.blocks
        if not scheduler.grow(reservation.request, end * scheduler.block_tokens + scheduler.spare_tokens):
            raise Refusal(f"no room for blocks {message.first_block} to {end} and a spare one")
        origin, workers = reservation.origin, self._workers.count
        states = scheduler.tables.states.reserved_ids(key[0]) if isinstance(message, Commit) else ()
        order = order_to_pull(message, origin, scheduler.tables.layout(key[0]), states)
        if begun is not None and begun != order:
            raise Refusal("its blocks were laid out elsewhere before")
        reservation.stage, reservation.here_blocks = message.stage, end
        if order is None:
            self.lay_out(key, reservation)
            return False
        if len(origin.addresses) != workers:
            raise Refusal(f"the source has {len(origin.addresses)} workers, there are {workers} here")
        reservation.awaited, reservation.last = True, isinstance(message, Commit)
        if begun is None:
            self._expect_end(reservation, message.stage)
            reservation.held_back = order
            self._begin(reservation)
        return True

    def after_step(self, key: Key, reservation: Reservation) -> None:
        """Begins, or lays out, what had to wait for a step."""
        if reservation.held_back is not None:
            self._begin(reservation)
        elif not (reservation.laid_out or reservation.pulling or reservation.dropped):
            self.lay_out(key, reservation)

    def _expect_end(self, reservation: Reservation, stage: int) -> None:
        reservation.pulling = {(stage, rank) for rank in range(self._workers.count)}
        reservation.bytes_read, reservation.failed = 0, ""

    def _begin(self, reservation: Reservation) -> None:
        order = reservation.held_back
        assert order is not None
        steps = self._scheduler.steps
        if steps.may_touch(order.target_blocks) and steps.idle:
            self._workers.ask("llumnix_wait_for_device")  # for the drafter of the last step: a moment
            steps.drafter_ended()
        if not steps.may_touch(order.target_blocks):
            reservation.held_back = None
            self._workers.order(order)

    def ended(self, key: Key, reservation: Reservation, ended: PullEnded) -> bool:
        """Whether that was what the llumlet waits for: the last rank of a stage is through."""
        self.begin_no_more(key, reservation)  # what had begun although the llumlet did not want it
        pull = (ended.stage, ended.rank)
        if pull not in reservation.pulling:
            return False
        reservation.pulling.discard(pull)
        reservation.bytes_read += ended.bytes_read
        if ended.quarantined:
            reservation.quarantined.add(pull)
        if not ended.ok:
            reservation.failed = reservation.failed or ended.reason
        if reservation.pulling or reservation.dropped or not reservation.awaited:
            return False
        reservation.awaited = False
        if not (reservation.failed or reservation.last):
            self.lay_out(key, reservation)
        return True

    def call_off(self, key: Key, reservation: Reservation) -> None:
        """Nothing is to come any more."""
        self.begin_no_more(key, reservation)
        if reservation.held_back is not None:
            reservation.held_back = None
            reservation.pulling.clear()
        if reservation.pulling:
            self._workers.order(CancelPulls(request=key[0], epoch=key[1]))
