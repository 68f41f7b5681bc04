"""A rolling restart, and others who wait, while instances go, front ends and the scheduler are restarted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from admin_answers import Install, drain_report, scaling_row, started_answer, state_answer, status_answer
from admin_answers import instance_row as row
from llumnix import operations
from llumnix.cli import main
from llumnix.client import AdminClient
from llumnix.errors import ServerRefused, ServerSilent
from llumnix.operations import restart_rolling

Json = dict[str, Any]
SILENT = {"error": {"message": "The scheduler does not answer; it is being restarted."}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_POLL_S", 0.001)
    monkeypatch.setattr(operations, "_ACQUAINTED_S", 0.01)


class Cluster:
    """Starts and drains at once; `before` is called with each request, and may change the cluster or answer itself."""

    def __init__(self, *names: str) -> None:
        self.states = dict.fromkeys(names or ("i0", "i1"), "running")
        self.story: list[str] = []
        self.before: Callable[[httpx.Request], httpx.Response | None] = lambda request: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if (answer := self.before(request)) is not None:
            return answer
        if request.method == "GET":
            if request.url.path.endswith("/drains"):
                return httpx.Response(200, json={"drains": [drain_report("i0")]})
            rows = [row(name, state) for name, state in self.states.items()]
            return httpx.Response(200, json=status_answer(*rows, scaling=scaling_row(serving=2)))
        if request.url.path.endswith("/drain"):
            return self.drain(request.url.path.split("/")[-2])
        replaces = json.loads(request.content)["replaces"]
        if self.states.get(replaces) != "running":
            return self.refusal(replaces)
        instance = f"i{len(self.states)}"
        self.states[instance] = "running"
        self.story.append(f"+{instance} for {replaces}")
        return httpx.Response(202, json=started_answer(1))

    def drain(self, instance: str) -> httpx.Response:
        if self.states.get(instance) != "running":
            return self.refusal(instance)
        self.states[instance] = "stopped"
        self.story.append(f"-{instance}")
        return httpx.Response(202, json=state_answer(instance, "draining"))

    def refusal(self, instance: str) -> httpx.Response:
        if instance not in self.states:
            return httpx.Response(404, json={"error": {"message": f"There is no instance {instance}."}})
        why = f"Instance {instance} is {self.states[instance]}: killed by SIGKILL."
        return httpx.Response(409, json={"error": {"message": why}})

    def restart(self, timeout_s: float = 5.0) -> list[str]:
        lines: list[str] = []
        restart_rolling(AdminClient("http://server"), lines.append, timeout_s)
        return lines


@pytest.fixture
def cluster(answer_with: Install) -> Cluster:
    made = Cluster()
    answer_with(made)
    return made


def when(cluster: Cluster, end: str, act: Callable[[], httpx.Response | None], times: int = 1) -> None:
    """Before the first requests whose method and path end like this."""
    left = [times]

    def before(request: httpx.Request) -> httpx.Response | None:
        if left[0] and f"{request.method} {request.url.path}".endswith(end):
            left[0] -= 1
            return act()
        return None

    cluster.before = before


def becomes(cluster: Cluster, **states: str) -> Callable[[], None]:
    return lambda: cluster.states.update(states)


def refuse_connection() -> httpx.Response:
    raise httpx.ConnectError("[Errno 111] Connection refused")


def hang_up() -> httpx.Response:
    raise httpx.RemoteProtocolError("Server disconnected without sending a response.")


def silent() -> httpx.Response:
    return httpx.Response(503, json=SILENT)


def test_instance_that_is_replaced_by_the_launcher_before_its_turn_is_left_out(cluster: Cluster) -> None:
    when(cluster, "/i0/drain", becomes(cluster, i1="lost", i9="running"))
    assert cluster.restart() == ["i2 runs; emptying i0", "i0 stopped", "i1 is lost already"]
    assert cluster.story == ["+i2 for i0", "-i0"]


def test_instance_that_is_scaled_in_before_its_turn_is_not_waited_for(cluster: Cluster) -> None:
    when(cluster, "/i0/drain", becomes(cluster, i1="stopped"))
    assert cluster.restart() == ["i2 runs; emptying i0", "i0 stopped", "i1 is stopped already"]


def test_instance_that_is_forgotten_before_its_turn_is_left_out(cluster: Cluster) -> None:
    def forget() -> None:
        del cluster.states["i1"]

    when(cluster, "/i0/drain", forget)
    assert cluster.restart()[-1] == "i1 is stopped already"


def test_instance_that_dies_as_another_is_ordered_for_it_is_left_out(cluster: Cluster) -> None:
    when(cluster, "POST /llumnix/v1/instances", becomes(cluster, i0="lost", i9="running"))
    assert cluster.restart() == ["i0 is lost already", "i3 runs; emptying i1", "i1 stopped"]


def test_instance_that_dies_as_it_is_to_be_emptied_is_gone_as_was_wanted(cluster: Cluster) -> None:
    when(cluster, "/i0/drain", becomes(cluster, i0="lost"))
    assert cluster.restart() == ["i2 runs; emptying i0", "i0 stopped", "i3 runs; emptying i1", "i1 stopped"]


@pytest.mark.parametrize("fault", [refuse_connection, hang_up, silent])
@pytest.mark.parametrize("meanwhile", ["/i0/drain", "/i1/drain"])
def test_restart_of_a_front_end_or_of_the_scheduler_does_not_stop_it_half_way(
    cluster: Cluster, fault: Callable[[], httpx.Response], meanwhile: str
) -> None:
    when(cluster, meanwhile, lambda: when(cluster, "", fault, times=3))
    assert cluster.restart()[-1] == "i1 stopped"
    assert cluster.story == ["+i2 for i0", "-i0", "+i3 for i1", "-i1"]


def test_order_to_drain_that_nobody_took_is_given_again(cluster: Cluster) -> None:
    when(cluster, "/i0/drain", silent, times=3)
    assert cluster.restart()[-1] == "i1 stopped"


def test_front_end_that_does_not_know_all_instances_yet_does_not_let_one_be_left_out(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_ACQUAINTED_S", 5.0)
    few = httpx.Response(200, json=status_answer(row("i2")))
    when(cluster, "/i0/drain", lambda: when(cluster, "/instances", lambda: few, times=4))
    assert cluster.restart()[-1] == "i1 stopped"
    assert cluster.story == ["+i2 for i0", "-i0", "+i3 for i1", "-i1"]


def test_nobody_is_waited_for_longer_than_a_step_may_take(cluster: Cluster) -> None:
    when(cluster, "/i0/drain", lambda: when(cluster, "", refuse_connection, times=100_000))
    with pytest.raises(ServerRefused, match=r"i0 did not become empty within 0.05 s. No server answers at http"):
        cluster.restart(timeout_s=0.05)


def test_refusal_that_is_meant_stops_it(cluster: Cluster) -> None:
    last = httpx.Response(409, json={"error": {"message": "It is the last one that takes requests."}})
    when(cluster, "/i0/drain", lambda: last)
    with pytest.raises(ServerRefused, match="the last one"):
        cluster.restart()


def test_order_to_start_that_may_have_been_taken_is_not_given_twice(cluster: Cluster) -> None:
    when(cluster, "POST /llumnix/v1/instances", silent)
    with pytest.raises(ServerSilent, match="scheduler does not answer"):
        cluster.restart()
    assert cluster.story == []


@pytest.mark.parametrize("words", [["drain", "i0", "--wait"], ["scale", "1", "--wait"]])
@pytest.mark.parametrize("fault", [refuse_connection, silent])
def test_drain_that_waits_outlasts_a_restart(
    cluster: Cluster, fault: Callable[[], httpx.Response], words: list[str]
) -> None:
    when(cluster, "/drains", fault, times=3)
    assert main(words) == 0
    assert cluster.story == ["-i0"]
