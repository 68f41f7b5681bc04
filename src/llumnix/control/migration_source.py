"""The giving side of a live migration. The request decodes on while its settled blocks are copied, round by round;
then it leaves the batch, and the rest of its blocks and its state follow (see control/migration.py)."""

from __future__ import annotations

import msgspec

from llumnix.config import MigrationConfig
from llumnix.control.commands import (
    AnswerMove,
    AnyCommand,
    Detach,
    Notify,
    PinBlocks,
    Reattach,
    Release,
    Send,
    SendToFrontEnd,
    UnpinBlocks,
    Unwatch,
    WatchProgress,
)
from llumnix.control.events import Detached, Gone, PeerLost, Preempted, Progress
from llumnix.control.messages import (
    Cancel,
    Commit,
    Committed,
    Copied,
    Copy,
    Doubt,
    Moved,
    Prepare,
    Prepared,
    Refused,
    Stayed,
    Verdict,
)
from llumnix.control.orders import MoveFigures, MoveOrder, MoveOutcome, StayCause
from llumnix.control.source_state import TOOK_TOO_LONG, SourceState
from llumnix.control.transitions import Expired, late
from llumnix.errors import IllegalEvent
from llumnix.types import Epoch, InstanceId, RequestId

_OVER = (SourceState.MOVED, SourceState.STAYED)
_OUT_OF_BATCH = (SourceState.DETACHING, SourceState.COMMITTING, SourceState.DOUBT)


class MigrationSource(msgspec.Struct, kw_only=True):
    """One attempt to give one request away. Plain data: can be encoded, and decoded to go on."""

    me: InstanceId
    order: MoveOrder
    request: RequestId
    epoch: Epoch
    config: MigrationConfig
    queued: bool
    """It holds no blocks: there is nothing to copy."""
    asked_blocks: int = 0
    """For so many the target keeps room."""

    state: SourceState = SourceState.PREPARING
    deadline_s: float | None = None
    late: int = 0
    stage: int = 0
    """The last stage sent, the commit included."""
    decoding_stages: int = 0
    """Stages sent since the prefill was over: only these race against new tokens."""
    there_blocks: int = 0
    """Blocks `[0, there_blocks)` are at the target: cached there, or copied and acknowledged."""
    pinned_blocks: int = 0
    """Blocks `[there_blocks, there_blocks + pinned_blocks)` may be being read."""
    settled_blocks: int = 0
    decoding: bool = False
    at_first_token: bool = False
    """It goes as soon as it has one, without a round: where prompts are computed, that would last a long step."""

    skipped_blocks: int = 0
    held_blocks: int = 0
    """When it left the batch."""
    bytes_copied: int = 0
    copy_from_s: float | None = None
    handover_from_s: float | None = None

    @property
    def target(self) -> InstanceId:
        return self.order.target

    @property
    def over(self) -> bool:
        return self.state in _OVER

    def start(self, at: float, blocks: int) -> list[AnyCommand]:
        """Asks the target for room for `blocks` blocks."""
        self.asked_blocks = blocks
        self.deadline_s = at + self.config.prepare_timeout_s
        to_decode = self.order.wanted.to_decode
        prepare = Prepare(request=self.request, epoch=self.epoch, sender=self.me, blocks=blocks, to_decode=to_decode)
        return [WatchProgress(self.request), Send(self.target, prepare)]

    def validate(self) -> None:
        """Raises AssertionError, in words, if the machine contradicts itself."""
        waits = not self.over
        assert waits == (self.deadline_s is not None), f"{self.state} has deadline {self.deadline_s}"
        may_pin = self.state in (SourceState.COPYING, SourceState.COMMITTING, SourceState.DOUBT)
        assert may_pin or self.pinned_blocks == 0, f"{self.state} has {self.pinned_blocks} blocks pinned"
        assert self.there_blocks >= self.skipped_blocks, "fewer blocks at the target than it had from the start"

    # copying

    def prepared(self, at: float, message: Prepared) -> list[AnyCommand]:
        self.there_blocks = self.skipped_blocks = message.skip_blocks
        if not self.queued and not self.asked_blocks:
            return self._stay(at, StayCause.BEGAN, "it has begun here meanwhile", cancel=True)
        return self._go_on(at)

    def progressed(self, at: float, event: Progress) -> list[AnyCommand]:
        self.settled_blocks = event.settled_blocks
        self.decoding = event.decoding
        self.queued = event.queued
        return []

    def progressed_while_waiting(self, at: float, event: Progress) -> list[AnyCommand]:
        self.progressed(at, event)
        return self._go_on(at)

    def copied(self, at: float, message: Copied) -> list[AnyCommand]:
        if message.stage < self.stage:
            return late(self, at, message)
        if message.stage > self.stage:
            raise IllegalEvent(f"stage {message.stage} of {self.request} was acknowledged before it was sent")
        self.there_blocks += self.pinned_blocks
        self.bytes_copied += message.bytes_read
        return [*self._unpin(), *self._go_on(at)]

    def _go_on(self, at: float) -> list[AnyCommand]:
        """Another stage, the hand-over, or wait for more: the rule of section 4.2, with three additions: a queued one
        is handed over at once, one in its prefill never, and one that decodes elsewhere with its first token."""
        left_blocks = self.settled_blocks - self.there_blocks
        worth_a_stage = left_blocks > self.config.last_stage_max_blocks
        out_of_stages = self.at_first_token or self.decoding_stages >= self.config.max_stages
        if self.queued or (self.decoding and (out_of_stages or not worth_a_stage)):
            return self._detach(at)
        if worth_a_stage:
            return self._copy(at, left_blocks)
        if self.state is not SourceState.WAITING:
            self.state = SourceState.WAITING
            self.deadline_s = at + self.config.stage_timeout_s
        return []

    def _copy(self, at: float, blocks: int) -> list[AnyCommand]:
        self.state = SourceState.COPYING
        self.deadline_s = at + self.config.stage_timeout_s
        self.stage += 1
        self.decoding_stages += self.decoding
        if self.copy_from_s is None:
            self.copy_from_s = at
        pin = self._pin(blocks)
        copy = Copy(
            request=self.request,
            epoch=self.epoch,
            sender=self.me,
            stage=self.stage,
            first_block=self.there_blocks,
            blocks=blocks,
        )
        return [*pin, Send(self.target, copy)]

    # hand-over

    def _detach(self, at: float) -> list[AnyCommand]:
        self.state = SourceState.DETACHING
        self.deadline_s = at + self.config.detach_timeout_s
        self.handover_from_s = at
        return [Unwatch(self.request), Detach(self.request)]

    def detached(self, at: float, event: Detached) -> list[AnyCommand]:
        self.state = SourceState.COMMITTING
        self.deadline_s = at + self.config.commit_timeout_s
        self.stage += 1
        self.held_blocks = event.total_blocks + event.state_blocks
        blocks = max(0, event.total_blocks - self.there_blocks)
        commit = Commit(
            request=self.request,
            epoch=self.epoch,
            sender=self.me,
            stage=self.stage,
            first_block=self.there_blocks,
            blocks=blocks,
            state_blocks=event.state_blocks,
        )
        return [*self._pin(blocks), Send(self.target, commit)]

    def committed(self, at: float, message: Committed) -> list[AnyCommand]:
        self.bytes_copied += message.bytes_read
        return self._moved(at)

    def _moved(self, at: float) -> list[AnyCommand]:
        outcome = self._end(SourceState.MOVED, at)
        moved = Moved(request=self.request, epoch=self.epoch, sender=self.me, outcome=outcome)
        return [*self._unpin(), Notify(self.request, moved), Release(self.request), AnswerMove(outcome)]

    # doubt: the front end decides

    def ask(self, at: float, event: Expired | PeerLost) -> list[AnyCommand]:
        self.state = SourceState.DOUBT
        self.deadline_s = at + self.config.verdict_timeout_s
        doubt = Doubt(request=self.request, epoch=self.epoch, sender=self.me, target=self.target)
        return [SendToFrontEnd(self.request, doubt)]

    def judged(self, at: float, verdict: Verdict) -> list[AnyCommand]:
        if verdict.owner == self.me:
            return self._stay(at, StayCause.UNCONFIRMED, "the target did not confirm, and the front end let it stay")
        if verdict.owner == self.target:
            return self._moved(at)
        outcome = self._end(SourceState.STAYED, at, StayCause.ENDED, "the request has ended or goes on elsewhere")
        return [*self._unpin(), Release(self.request), AnswerMove(outcome)]

    # every way to stay

    def refused(self, at: float, message: Refused) -> list[AnyCommand]:
        stayed = StayCause.NO_ADAPTER if message.for_adapter else StayCause.REFUSED
        return self._stay(at, stayed, f"refused: {message.reason}")

    def preempted(self, at: float, event: Preempted) -> list[AnyCommand]:
        return self._stay(at, StayCause.PREEMPTED, "preempted", cancel=True)

    def target_lost(self, at: float, event: PeerLost) -> list[AnyCommand]:
        return self._stay(at, StayCause.TARGET_LOST, "the target was lost")

    def expired(self, at: float, event: Expired) -> list[AnyCommand]:
        return self._stay(at, StayCause.TIMEOUT, TOOK_TOO_LONG[self.state], cancel=True)

    def _stay(self, at: float, stayed: StayCause, why: str, *, cancel: bool = False) -> list[AnyCommand]:
        undo = self._undo(why, cancel=cancel)
        if self.state in _OUT_OF_BATCH:
            undo.append(Reattach(self.request))
        outcome = self._end(SourceState.STAYED, at, stayed, why)
        notice = Stayed(request=self.request, epoch=self.epoch, sender=self.me, outcome=outcome)
        return [*undo, Notify(self.request, notice), AnswerMove(outcome)]

    def gone(self, at: float, event: Gone) -> list[AnyCommand]:
        undo = self._undo(event.why, cancel=True)
        return [*undo, AnswerMove(self._end(SourceState.STAYED, at, StayCause.ENDED, event.why))]

    def _undo(self, why: str, *, cancel: bool) -> list[AnyCommand]:
        commands = self._unpin()
        if self.state not in _OUT_OF_BATCH:
            commands.append(Unwatch(self.request))
        if cancel:
            message = Cancel(request=self.request, epoch=self.epoch, sender=self.me, reason=why)
            commands.append(Send(self.target, message))
        return commands

    # small parts

    def _pin(self, blocks: int) -> list[AnyCommand]:
        self.pinned_blocks = blocks
        return [PinBlocks(self.request, self.epoch, self.there_blocks, blocks)] if blocks else []

    def _unpin(self) -> list[AnyCommand]:
        if not self.pinned_blocks:
            return []
        self.pinned_blocks = 0
        return [UnpinBlocks(self.request, self.epoch)]

    def _end(
        self, state: SourceState, at: float, stayed: StayCause | None = None, why_not: str | None = None
    ) -> MoveOutcome:
        self.state = state
        self.deadline_s = None
        figures = self._figures(at)
        return MoveOutcome(
            order=self.order, source=self.me, request=self.request, why_not=why_not, stayed=stayed, figures=figures
        )

    def _figures(self, at: float) -> MoveFigures:
        copied_until = at if self.handover_from_s is None else self.handover_from_s
        return MoveFigures(
            stages=self.stage,
            bytes_copied=self.bytes_copied,
            blocks_skipped=self.skipped_blocks,
            held_blocks=self.held_blocks,
            copy_s=0.0 if self.copy_from_s is None else copied_until - self.copy_from_s,
            handover_s=0.0 if self.handover_from_s is None else at - self.handover_from_s,
        )
