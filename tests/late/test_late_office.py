"""An instance opens: everybody hears of it, its mail reaches the main thread, its heart beats; and it closes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

pytest.importorskip("vllm")

from late_pair import LatePair

from llumnix.control.scheduler_events import SetDraining
from llumnix.engine.vllm.instance.office import CONTROL, AskedToEnd, Office, Tick
from llumnix.types import InstanceState
from llumnix.wire.addresses import on_one_machine
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import Report
from llumnix.wire.to_instance import INSTANCE_MAIL, ToInstance
from llumnix.wire.to_launcher import LAUNCHER_MAIL
from llumnix.wire.to_scheduler import SCHEDULER_MAIL

WAIT_S = 10.0


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Queue[Any]]:
    """What the scheduler hears."""
    queue: Queue[Any] = Queue()
    mailbox = Mailbox(on_one_machine(tmp_path).scheduler, SCHEDULER_MAIL, queue.put)
    mailbox.start()
    yield queue
    mailbox.close()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    core = LatePair().cores[0]
    spec = replace(core._spec, book=on_one_machine(tmp_path))

    def on_mail(mail: ToInstance) -> None:
        made.on_mail(mail)

    mailbox = Mailbox(spec.book.instance(spec.id), INSTANCE_MAIL, on_mail)
    made = Office(core, spec, core._info, mailbox, core._follower, core._ledger)
    made.open()
    yield made
    made.close()


def report(heard: Queue[Any], state: InstanceState) -> Report:
    while True:
        message = heard.get(timeout=WAIT_S)
        if isinstance(message, Report) and message.snapshot.state is state:
            return message


def test_instance_that_opens_is_heard_of_and_hears(heard: Queue[Any], office: Office) -> None:
    assert report(heard, InstanceState.RUNNING).info == office.info
    core: Any = office._core
    office._mailbox.post(
        office._mailbox.address, SetDraining(instance=office.info.id, draining=True, keep=False, reason="a test")
    )
    kind, message = core.input_queue.get(timeout=WAIT_S)
    assert (kind, type(message)) == (CONTROL, SetDraining)
    office.reports.begins()
    office.take(message)
    office.after_message()
    office.before_sleep()
    report(heard, InstanceState.DRAINING)


@pytest.mark.parametrize("asked", ["drained", "signalled"])
def test_launcher_hears_that_an_instance_is_to_go_before_the_next_heartbeat(
    tmp_path: Path, office: Office, asked: str
) -> None:
    office.reports._told_launcher_s = float("inf")  # no heartbeat to it
    queue: Queue[Any] = Queue()
    mailbox = Mailbox(on_one_machine(tmp_path).launcher, LAUNCHER_MAIL, queue.put)
    mailbox.start()
    office.reports.begins()
    order = SetDraining(instance=office.info.id, draining=True, keep=False, reason="a test")
    office.take(order if asked == "drained" else AskedToEnd())
    office.after_message()
    office.before_sleep()
    while not queue.get(timeout=WAIT_S).snapshot.goes:
        pass
    mailbox.close()


def test_heart_beats_and_rings(heard: Queue[Any], office: Office) -> None:
    first = report(heard, InstanceState.RUNNING)
    again = report(heard, InstanceState.RUNNING)
    assert again.snapshot.seq == first.snapshot.seq
    office._heart.wake_at(time.monotonic())
    core: Any = office._core
    assert core.input_queue.get(timeout=WAIT_S) == (CONTROL, Tick())
