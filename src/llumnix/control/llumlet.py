"""The llumlet: Llumnix's part inside an instance (paper section 4.1), as a machine without I/O.

Routes what happens to the migrations that it concerns (control/migration.py), by request and epoch, so that what
belongs to an attempt that is over changes nothing; has new ones started (giving_away.py); refuses what it cannot take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from llumnix.config import MigrationConfig
from llumnix.control.attempts import Attempts, Ended
from llumnix.control.commands import AnyCommand, Send, WakeAt
from llumnix.control.events import (
    Accepting,
    AnyEvent,
    Detached,
    Draining,
    Gone,
    Installed,
    InstallFailed,
    MoveOrdered,
    PeerLost,
    Preempted,
    Progress,
    Pulled,
    PullFailed,
    Received,
    Reserved,
    ReserveFailed,
    TimerFired,
)
from llumnix.control.giving_away import ChooseVictims, GivingAway
from llumnix.control.messages import (
    AnyMessage,
    Cancel,
    Commit,
    Committed,
    Copied,
    Copy,
    Doubt,
    Prepare,
    Prepared,
    Refused,
    Verdict,
)
from llumnix.control.migration_target import MigrationTarget, TargetState
from llumnix.control.transcript import Transcript, request_of
from llumnix.control.transitions import Expired
from llumnix.errors import IllegalEvent, IllegalMessage
from llumnix.types import InstanceId, RequestId


class Llumlet:
    """The only object that an instance's driver holds.

    `choose_victims` is `policy.victim.choose_victims` with the policy's rule, `cooldown_s` what it is asked with.
    With `validate` every event is followed by a check of the invariants (for tests).
    """

    def __init__(
        self,
        instance: InstanceId,
        config: MigrationConfig,
        choose_victims: ChooseVictims,
        cooldown_s: float,
        *,
        validate: bool = False,
    ) -> None:
        self.instance = instance
        self.config = config
        self.attempts = Attempts()
        self.transcript = Transcript()
        self.record: Callable[[AnyEvent, list[AnyCommand]], None] | None = None
        """Told what the transcript is told."""
        self._giving = GivingAway(instance, config, self.attempts, choose_victims, cooldown_s)
        self._validate = validate

    def handle(self, event: AnyEvent) -> list[AnyCommand]:
        """Raises IllegalEvent, with the transcript of the request, if the driver broke its contract, and IllegalMessage
        if whoever sent a message did; nothing changed."""
        if isinstance(event, Gone | Progress | Preempted) and not self.attempts.is_moving(event.request):
            return []  # of the many requests that never move; not worth a line in the transcript
        try:
            commands = self._route(event)
        except IllegalEvent as error:
            request = request_of(event)
            transcript = "" if request is None else "".join(str(entry) for entry in self.transcript.of(request))
            fault = IllegalMessage if isinstance(event, Received) else IllegalEvent
            raise fault(f"{self.instance}: {error}\n{transcript}") from None
        commands += self._alarm()
        self.transcript.add(event, commands)
        if self.record is not None:
            self.record(event, commands)
        if self._validate:
            self.attempts.validate()
        return commands

    @property
    def incoming(self) -> int:
        """Migrations on their way in (for the load report)."""
        return self.attempts.incoming

    @property
    def outgoing(self) -> int:
        return self.attempts.outgoing

    @property
    def late(self) -> int:
        """Messages so far that came twice, too late, or for an attempt that is over."""
        return self.attempts.late + sum(machine.late for machine in self.attempts.machines)

    def is_moving(self, request: RequestId) -> bool:
        return self.attempts.is_moving(request)

    # routing

    def _route(self, event: AnyEvent) -> list[AnyCommand]:
        match event:
            case Progress() | Preempted() | Detached() | Gone():
                return self._of_the_engine(event)
            case Received():
                commands = self._received(event.at, event.message)
                self.attempts.epoch = max(self.attempts.epoch, event.message.epoch)
                return commands
            case Draining():
                self.attempts.draining = True
                return []
            case Accepting():
                self.attempts.draining = False
                return []
            case TimerFired():
                return self._timer_fired(event.at)
            case MoveOrdered():
                return self._giving.obey(event)
            case PeerLost():
                return self._peer_lost(event)
            case Reserved() | ReserveFailed() | Pulled() | PullFailed() | Installed() | InstallFailed():
                return self._of_an_arrival(event)
            case _:
                assert_never(event)

    def _of_an_arrival(
        self, event: Reserved | ReserveFailed | Pulled | PullFailed | Installed | InstallFailed
    ) -> list[AnyCommand]:
        target = self.attempts.targets.get(event.request)
        if target is None or target.epoch != event.epoch:
            self.attempts.late += 1
            return []
        return self.attempts.follow_target(target, event.at, event)

    def _of_the_engine(self, event: Progress | Preempted | Detached | Gone) -> list[AnyCommand]:
        source = self.attempts.sources.get(event.request)
        if source is not None:
            return self.attempts.follow_source(source, event.at, event)
        target = self.attempts.targets.get(event.request)
        if target is not None and isinstance(event, Gone):
            return self.attempts.follow_target(target, event.at, event)
        if isinstance(event, Detached):
            raise IllegalEvent(f"{event.request} was detached, but does not move")
        return []

    def _peer_lost(self, event: PeerLost) -> list[AnyCommand]:
        commands: list[AnyCommand] = []
        for source in [source for source in self.attempts.sources.values() if source.target == event.instance]:
            commands += self.attempts.follow_source(source, event.at, event)
        for target in [target for target in self.attempts.targets.values() if target.source == event.instance]:
            commands += self.attempts.follow_target(target, event.at, event)
        return commands

    def _timer_fired(self, at: float) -> list[AnyCommand]:
        self.attempts.wake_at_s = None
        commands: list[AnyCommand] = []
        for source in list(self.attempts.sources.values()):
            if source.deadline_s is not None and source.deadline_s <= at:
                commands += self.attempts.follow_source(source, at, Expired())
        for target in list(self.attempts.targets.values()):
            if target.deadline_s is not None and target.deadline_s <= at:
                commands += self.attempts.follow_target(target, at, Expired())
        return commands

    def _alarm(self) -> list[AnyCommand]:
        # An alarm that is too early is cheap: it finds no deadline passed and is set again.
        deadline, wake_at = self.attempts.next_deadline_s, self.attempts.wake_at_s
        if deadline is None or (wake_at is not None and wake_at <= deadline):
            return []
        self.attempts.wake_at_s = deadline
        return [WakeAt(deadline)]

    # messages

    def _received(self, at: float, message: AnyMessage) -> list[AnyCommand]:
        source = self.attempts.sources.get(message.request)
        if source is not None and source.epoch != message.epoch:
            source = None
        target = self.attempts.targets.get(message.request)
        if target is not None and target.epoch != message.epoch:
            target = None
        match message:
            case Prepare() | Copy() | Commit() | Cancel() if target is not None:
                return self.attempts.follow_target(target, at, message)
            case Prepared() | Copied() | Committed() | Refused() if source is not None:
                return self.attempts.follow_source(source, at, message)
            case Verdict() if source is not None:
                return self.attempts.follow_source(source, at, message)
            case Verdict() if target is not None:
                return self.attempts.follow_target(target, at, message)
            case Prepare():
                return self._asked_to_take(at, message)
            case Copy() | Commit() | Cancel() | Prepared() | Copied() | Committed() | Refused() | Verdict() | Doubt():
                self.attempts.late += 1
                return self._stale(at, message)
            case _:
                assert_never(message)

    def _stale(
        self,
        at: float,
        message: Copy | Commit | Cancel | Prepared | Copied | Committed | Refused | Verdict | Doubt,
    ) -> list[AnyCommand]:
        """No machine has this attempt. It does no harm, but the other side may be told so at once."""
        match message:
            case Copy() | Commit() if not self.attempts.was_adopted(message.request, message.epoch):
                return self._refuse(at, message, "this attempt is over")
            case Cancel():
                # It may have overtaken its Prepare, which must not reserve anything then.
                self.attempts.remember(message.request, Ended(message.epoch, False, at))
                return []
            case Prepared():
                why = "this attempt is over"
                cancel = Cancel(request=message.request, epoch=message.epoch, sender=self.instance, reason=why)
                return [Send(message.sender, cancel)]
            case Copy() | Commit() | Copied() | Committed() | Refused() | Verdict() | Doubt():
                return []
            case _:
                assert_never(message)

    def _asked_to_take(self, at: float, message: Prepare) -> list[AnyCommand]:
        undo: list[AnyCommand] = []
        older = self.attempts.targets.get(message.request)
        if self.attempts.has_ended(message.request, message.epoch):
            self.attempts.late += 1
            over = not self.attempts.was_adopted(message.request, message.epoch)
            return self._refuse(at, message, "this attempt is over") if over else []
        if older is not None and older.state is not TargetState.ADOPTED and older.epoch < message.epoch:
            # Only an owner starts an attempt: whoever started the older one has given up.
            why = "a newer attempt began"
            cancel = Cancel(request=message.request, epoch=older.epoch, sender=message.sender, reason=why)
            undo = self.attempts.follow_target(older, at, cancel)
        why_not = self._why_not_take(message)
        if why_not:
            return undo + self._refuse(at, message, why_not)
        target = MigrationTarget(
            me=self.instance,
            source=message.sender,
            request=message.request,
            epoch=message.epoch,
            config=self.config,
        )
        self.attempts.targets[message.request] = target
        return undo + target.start(at, message)

    def _why_not_take(self, message: Prepare) -> str:
        if self.attempts.is_moving(message.request):
            return "an older copy of it is still here"
        if self.attempts.draining:
            return "draining"
        if self.attempts.incoming >= self.config.max_incoming:
            return f"{self.attempts.incoming} migrations in already"
        return ""

    def _refuse(self, at: float, message: Prepare | Copy | Commit, why: str) -> list[AnyCommand]:
        """Promises never to adopt this attempt."""
        self.attempts.remember(message.request, Ended(message.epoch, False, at))
        refused = Refused(request=message.request, epoch=message.epoch, sender=self.instance, reason=why)
        return [Send(message.sender, refused)]
