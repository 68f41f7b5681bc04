"""What an instance makes of news that come in any order, or late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from llumnix.config import PolicyConfig
from llumnix.control.scheduler_events import SetDraining, SetRole
from llumnix.engine.vllm.instance.office import AskedToEnd, Office
from llumnix.engine.vllm.instance.reports import Reports
from llumnix.roles_config import RolesConfig
from llumnix.types import InstanceId, InstanceState, Role
from llumnix.wire.news import FrontEndLost

pytestmark = pytest.mark.adapter


def order(draining: bool, keep: bool = False) -> SetDraining:
    return SetDraining(instance=InstanceId("i0"), draining=draining, keep=keep, reason="by order")


@pytest.mark.parametrize(
    "heard",
    [
        [AskedToEnd()],
        [AskedToEnd(), order(False)],
        [AskedToEnd(), order(True, keep=True)],
        [order(True), AskedToEnd(), order(False)],
        [order(True, keep=True), AskedToEnd()],
        [order(True), order(False), AskedToEnd()],
    ],
)
def test_no_order_leads_back(heard: list[Any]) -> None:
    office: Any = Office.__new__(Office)
    told: list[bool] = []
    office.driver = SimpleNamespace(set_draining=told.append, tell_ends=lambda: None)
    office.reports = SimpleNamespace(state=InstanceState.RUNNING, drain_keep=False, asked_to_end=False)
    for message in heard:
        office.take(message)
    said = office.reports
    assert (said.state, said.drain_keep, said.asked_to_end) == (InstanceState.DRAINING, False, True)
    assert told[-1] is True


def test_late_news_of_a_lost_front_end_aborts_nothing_of_its_successor() -> None:
    """Both have the same index; a request of the successor's that was aborted here would wait for ever there."""
    office: Any = Office.__new__(Office)
    aborted: list[str] = []
    office.driver = SimpleNamespace(tell_ends=lambda: None)
    office.resumes = SimpleNamespace(abort_all_of=lambda *_: None)
    arrived = {
        "of the lost one": (1, 99.0),
        "its last": (1, 100.0),
        "the successor's": (1, 100.4),
        "another's": (0, 99.0),
    }
    scheduler = SimpleNamespace(
        requests={
            name: SimpleNamespace(request_id=name, client_index=front_end, arrival_time=at)
            for name, (front_end, at) in arrived.items()
        }
    )
    office._core = SimpleNamespace(abort_requests=aborted.extend, scheduler=scheduler)
    office.take(FrontEndLost(front_end=1, until_unix_s=100.0))
    assert aborted == ["of the lost one", "its last"]


def test_role_is_told_with_the_next_report_and_acted_on() -> None:
    office: Any = Office.__new__(Office)
    office.driver = SimpleNamespace(tell_ends=lambda: None)
    office.reports = Reports.__new__(Reports)
    office.reports._driver = office.driver
    office.reports._spec = SimpleNamespace(policy=PolicyConfig(roles=RolesConfig(tpot_target_ms=30)))
    office.reports._scheduler = SimpleNamespace(limits=SimpleNamespace(target_s=0.0))
    for role, target_s in ((Role.DECODE, 0.030), (Role.PREFILL, 0.0), (Role.MIXED, 0.030)):
        office.take(SetRole(instance=InstanceId("i0"), role=role, reason="asked for"))
        assert office.reports.role is office.driver.role is role
        assert office.reports._scheduler.limits.target_s == target_s, "prompts come first where they are computed"
