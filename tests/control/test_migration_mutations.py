"""The model can fail: each of these plausible mistakes breaks it within a few walks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from migration_walk import CONFUSED, walk

from llumnix.control.commands import AnyCommand, Release, UnpinBlocks
from llumnix.control.events import Detached, Installed
from llumnix.control.front_end_events import Deliver
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import Adopted, Cancel, Committed
from llumnix.control.migration import SOURCE, TARGET
from llumnix.control.migration_source import MigrationSource
from llumnix.control.migration_target import MigrationTarget, TargetState
from llumnix.control.ownership import Order, Ownership
from llumnix.control.source_state import SourceState
from llumnix.control.stream import Stream
from llumnix.control.transitions import Edge

Patch = pytest.MonkeyPatch


def edge(patch: Patch, table: Any, state: object, event: type, do: object, to: object) -> None:
    patch.setitem(table[state], event, Edge(do, to))  # type: ignore[arg-type]


def tokens_of_the_target_are_not_held(patch: Patch) -> None:
    def deliver(self: Ownership, request: str, instance: str, outputs: Any, tokens: int, last: bool) -> list[Order]:
        return [Deliver(request, outputs)] if request in self.streams else []  # type: ignore[arg-type]

    patch.setattr(Ownership, "outputs_arrived", deliver)


def stream_passes_before_the_last_token_of_the_source(patch: Patch) -> None:
    adopted = Ownership._adopted

    def at_once(self: Ownership, stream: Stream, notice: Adopted) -> list[Order]:
        return adopted(self, stream, msgspec.structs.replace(notice, output_tokens=stream.delivered_tokens))

    patch.setattr(Ownership, "_adopted", at_once)


def source_frees_before_the_acknowledgement(patch: Patch) -> None:
    def detached(self: MigrationSource, at: float, event: Detached) -> list[AnyCommand]:
        commands = MigrationSource.detached(self, at, event)
        unpin = [UnpinBlocks(self.request, self.epoch)] if self.pinned_blocks else []
        self.pinned_blocks = 0
        return [*commands, *unpin, Release(self.request)]

    edge(patch, SOURCE, SourceState.DETACHING, Detached, detached, SourceState.COMMITTING)


def source_in_doubt_believes_the_target(patch: Patch) -> None:
    edge(patch, SOURCE, SourceState.DOUBT, Committed, MigrationSource.committed, SourceState.MOVED)


def target_obeys_a_cancel_after_it_adopted(patch: Patch) -> None:
    def free(self: MigrationTarget, at: float, event: Cancel) -> list[AnyCommand]:
        self._end(TargetState.DROPPED)
        return [Release(self.request)]

    edge(patch, TARGET, TargetState.ADOPTED, Cancel, free, TargetState.DROPPED)


def target_does_not_wait_to_be_confirmed(patch: Patch) -> None:
    def installed(self: MigrationTarget, at: float, event: Installed) -> list[AnyCommand]:
        commands = MigrationTarget.installed(self, at, event)
        self._end(TargetState.SETTLED)
        return commands

    edge(patch, TARGET, TargetState.INSTALLING, Installed, installed, TargetState.SETTLED)


def epochs_are_ignored(patch: Patch) -> None:
    received = Llumlet._received

    def of_any_epoch(self: Llumlet, at: float, message: Any) -> list[AnyCommand]:
        for machine in self.attempts.machines:
            if machine.request == message.request:
                message = msgspec.structs.replace(message, epoch=machine.epoch)
        return received(self, at, message)

    patch.setattr(Llumlet, "_received", of_any_epoch)


@pytest.mark.parametrize(
    "mistake",
    [
        tokens_of_the_target_are_not_held,
        stream_passes_before_the_last_token_of_the_source,
        source_frees_before_the_acknowledgement,
        source_in_doubt_believes_the_target,
        target_obeys_a_cancel_after_it_adopted,
        target_does_not_wait_to_be_confirmed,
        epochs_are_ignored,
    ],
)
def test_the_model_finds(mistake: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mistake(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011 (which of the model's checks trips first does not matter)
        walk_long()


def walk_long() -> None:
    for seed in range(300):
        walk(seed, steps=400, weights=CONFUSED)
