"""The taking side of a live migration. Reserves room, reads what the source names, and at the commit makes a running
request of it (see control/migration.py)."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from llumnix.config import MigrationConfig
from llumnix.control.commands import (
    AnyCommand,
    Drop,
    Install,
    Notify,
    Pull,
    Release,
    Reserve,
    Send,
    SendToFrontEnd,
)
from llumnix.control.events import (
    Gone,
    Installed,
    InstallFailed,
    PeerLost,
    Pulled,
    PullFailed,
    Reserved,
    ReserveFailed,
)
from llumnix.control.messages import (
    Adopted,
    Cancel,
    Commit,
    Committed,
    Copied,
    Copy,
    Doubt,
    Fenced,
    Prepare,
    Prepared,
    Refused,
    Verdict,
)
from llumnix.control.transitions import Expired, late
from llumnix.errors import IllegalEvent
from llumnix.types import Epoch, InstanceId, RequestId


class TargetState(StrEnum):
    RESERVING = "reserving"
    """The engine was asked for blocks."""
    READY = "ready"
    """Waits for the next stage."""
    PULLING = "pulling"
    """Reads the blocks of a stage, or the last ones."""
    INSTALLING = "installing"
    """Has everything; the engine makes a request of it."""
    ADOPTED = "adopted"
    """Runs it, and has told the source and the front end; waits for the front end to confirm."""
    SETTLED = "settled"
    """It is the owner, or was when the request ended."""
    DROPPED = "dropped"
    """Will never adopt this attempt; what it had of it is free."""


_OVER = (TargetState.SETTLED, TargetState.DROPPED)


class MigrationTarget(msgspec.Struct, kw_only=True):
    """One attempt to take one request. Plain data: can be encoded, and decoded to go on."""

    me: InstanceId
    source: InstanceId
    request: RequestId
    epoch: Epoch
    config: MigrationConfig

    state: TargetState = TargetState.RESERVING
    deadline_s: float | None = None
    late: int = 0
    skip_blocks: int = 0
    stage: int = 0
    """The last stage that is here."""
    here_blocks: int = 0
    """Blocks `[0, here_blocks)` are here."""
    pulling: Copy | Commit | None = None
    """What is being read, or installed."""
    bytes_read: int = 0
    """By the last pull."""

    @property
    def over(self) -> bool:
        return self.state in _OVER

    def start(self, at: float, message: Prepare) -> list[AnyCommand]:
        """Asks the engine for room."""
        self.deadline_s = at + self.config.prepare_timeout_s
        return [Reserve(self.request, self.epoch, message.blocks, message)]

    def validate(self) -> None:
        """Raises AssertionError, in words, if the machine contradicts itself."""
        waits = not self.over
        assert waits == (self.deadline_s is not None), f"{self.state} has deadline {self.deadline_s}"
        works = self.state in (TargetState.PULLING, TargetState.INSTALLING)
        assert works == (self.pulling is not None), f"{self.state} works on {self.pulling}"
        assert self.here_blocks >= self.skip_blocks, "has fewer blocks than were cached from the start"

    # reservation

    def reserved(self, at: float, event: Reserved) -> list[AnyCommand]:
        self.skip_blocks = self.here_blocks = event.skip_blocks
        return [*self._ready(at), *self.prepared_again(at, event)]

    def prepared_again(self, at: float, event: Reserved | Prepare) -> list[AnyCommand]:
        message = Prepared(request=self.request, epoch=self.epoch, sender=self.me, skip_blocks=self.skip_blocks)
        return [Send(self.source, message)]

    def _ready(self, at: float) -> list[AnyCommand]:
        # A source may wait for a prefill and then for its engine, each with a deadline of its own.
        self.state = TargetState.READY
        self.deadline_s = at + self.config.stage_timeout_s + self.config.detach_timeout_s
        return []

    # stages

    def next_stage(self, at: float, message: Copy | Commit) -> list[AnyCommand]:
        if message.stage <= self.stage:
            return late(self, at, message)
        if message.stage != self.stage + 1 or message.first_block != self.here_blocks:
            return self.out_of_step(at, message)
        self.pulling = message
        self.deadline_s = at + self.config.stage_timeout_s
        if isinstance(message, Commit) and not (message.blocks or message.state_blocks):
            self.stage = message.stage
            self.bytes_read = 0
            return self._install(message)
        self.state = TargetState.PULLING
        return [Pull(self.request, self.epoch, message.stage, message)]

    def stage_while_pulling(self, at: float, message: Copy | Commit) -> list[AnyCommand]:
        assert self.pulling is not None
        return late(self, at, message) if message.stage <= self.pulling.stage else self.out_of_step(at, message)

    def out_of_step(self, at: float, message: Copy | Commit) -> list[AnyCommand]:
        why = f"stage {message.stage} from block {message.first_block} does not follow {self.here_blocks} blocks"
        return self._refuse(why)

    def pulled(self, at: float, event: Pulled) -> list[AnyCommand]:
        message = self.pulling
        if message is None or event.stage != message.stage:
            raise IllegalEvent(f"stage {event.stage} of {self.request} was not being read")
        self.stage = message.stage
        self.here_blocks += message.blocks
        self.bytes_read = event.bytes_read
        if isinstance(message, Commit):
            self.deadline_s = at + self.config.stage_timeout_s
            return self._install(message)
        self.pulling = None
        copied = Copied(
            request=self.request, epoch=self.epoch, sender=self.me, stage=self.stage, bytes_read=event.bytes_read
        )
        return [*self._ready(at), Send(self.source, copied)]

    # hand-over

    def _install(self, message: Commit) -> list[AnyCommand]:
        self.state = TargetState.INSTALLING
        return [Install(self.request, self.epoch, message)]

    def installed(self, at: float, event: Installed) -> list[AnyCommand]:
        self.state = TargetState.ADOPTED
        self.pulling = None
        self.deadline_s = at + self.config.commit_timeout_s
        here = Adopted(
            request=self.request,
            epoch=self.epoch,
            sender=self.me,
            source=self.source,
            output_tokens=event.output_tokens,
        )
        return [Notify(self.request, here), *self.committed_again(at, event)]

    def committed_again(self, at: float, event: Installed | Commit) -> list[AnyCommand]:
        message = Committed(request=self.request, epoch=self.epoch, sender=self.me, bytes_read=self.bytes_read)
        return [Send(self.source, message)]

    def ask(self, at: float, event: Expired) -> list[AnyCommand]:
        self.deadline_s = at + self.config.verdict_timeout_s
        doubt = Doubt(request=self.request, epoch=self.epoch, sender=self.me, target=self.me)
        return [SendToFrontEnd(self.request, doubt)]

    def confirmed_or_fenced(self, at: float, verdict: Verdict) -> list[AnyCommand]:
        if verdict.owner == self.me:
            self._end(TargetState.SETTLED)
            return []
        self._end(TargetState.DROPPED)
        fenced = Fenced(request=self.request, epoch=self.epoch, sender=self.me)
        return [Notify(self.request, fenced), Release(self.request)]

    def ended_here(self, at: float, event: Gone) -> list[AnyCommand]:
        self._end(TargetState.SETTLED)
        return []

    # every way not to take it

    def no_room(self, at: float, event: ReserveFailed) -> list[AnyCommand]:
        self._end(TargetState.DROPPED)
        refused = Refused(
            request=self.request,
            epoch=self.epoch,
            sender=self.me,
            reason=event.reason,
            for_adapter=event.for_adapter,
        )
        return [Send(self.source, refused)]

    def failed(self, at: float, event: PullFailed | InstallFailed) -> list[AnyCommand]:
        return self._refuse(event.reason)

    def expired(self, at: float, event: Expired) -> list[AnyCommand]:
        return self._refuse(f"took too long while {self.state}")

    def _refuse(self, why: str) -> list[AnyCommand]:
        refused = Refused(request=self.request, epoch=self.epoch, sender=self.me, reason=why)
        return [*self._drop(), Send(self.source, refused)]

    def cancelled(self, at: float, event: Cancel | PeerLost) -> list[AnyCommand]:
        return self._drop()

    def fenced(self, at: float, verdict: Verdict) -> list[AnyCommand]:
        if verdict.owner == self.me:
            raise IllegalEvent(f"the front end made {self.me} owner of {self.request}, which was never adopted")
        return self._drop()

    def _drop(self) -> list[AnyCommand]:
        self._end(TargetState.DROPPED)
        return [Drop(self.request, self.epoch)]

    def _end(self, state: TargetState) -> None:
        self.state = state
        self.deadline_s = None
        self.pulling = None
