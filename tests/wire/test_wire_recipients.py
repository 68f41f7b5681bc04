"""Each mailbox takes what is for its process, and nothing else."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest

from llumnix.control.fleet import Fleet
from llumnix.control.scheduler_events import StartInstances
from llumnix.types import InstanceId, RequestId
from llumnix.wire.base import decode, encode
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import FrontEndLost, InstanceGone
from llumnix.wire.outbox import Mail, Outbox
from llumnix.wire.to_front_end import FRONT_END_MAIL, SchedulerAlive
from llumnix.wire.to_instance import INSTANCE_MAIL, ClusterSize
from llumnix.wire.to_launcher import LAUNCHER_MAIL, ToLauncher
from llumnix.wire.to_scheduler import SCHEDULER_MAIL, FleetChanged
from llumnix.wire.to_worker import WORKER_MAIL, CancelPulls, ForgetPeer

DECODERS = {
    "instance": INSTANCE_MAIL,
    "scheduler": SCHEDULER_MAIL,
    "launcher": LAUNCHER_MAIL,
    "front": FRONT_END_MAIL,
    "worker": WORKER_MAIL,
}
START = StartInstances(count=1, reason="asked for", order=1)
GONE = InstanceGone(instance=InstanceId("i0"), index=0, why="killed", expected=False)


@pytest.mark.parametrize(
    ("message", "recipients"),
    [
        (ClusterSize(instances=3), {"instance"}),
        (FleetChanged(fleet=Fleet(serving=1, starting=0)), {"scheduler"}),
        (START, {"launcher"}),
        (SchedulerAlive(pid=1), {"front"}),
        (CancelPulls(request=RequestId("r"), epoch=1), {"worker"}),
        (ForgetPeer(addresses=("kv-0", "kv-1")), {"worker"}),
        (GONE, {"instance", "scheduler", "front"}),
    ],
)
def test_only_those_whom_it_concerns_understand_it(message: Mail, recipients: set[str]) -> None:
    assert {name for name, decoder in DECODERS.items() if understands(decoder, message)} == recipients


def understands(decoder: Any, message: Mail) -> bool:
    try:
        return decode(encode(message), decoder) == message  # type: ignore[no-any-return]
    except ValueError:
        return False


@pytest.mark.io
def test_what_is_not_for_this_process_is_counted_and_the_next_message_is_heard(tmp_path: Path) -> None:
    heard: queue.SimpleQueue[ToLauncher] = queue.SimpleQueue()
    mailbox = Mailbox(f"ipc://{tmp_path}/launcher", LAUNCHER_MAIL, heard.put)
    mailbox.start()
    outbox = Outbox()
    outbox.post(mailbox.address, FrontEndLost(front_end=1))
    outbox.post(mailbox.address, START)
    assert heard.get(timeout=30.0) == START
    assert mailbox.malformed == 1
    outbox.close()
    mailbox.close()
