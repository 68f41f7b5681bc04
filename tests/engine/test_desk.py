"""Requests at the desk: held, called in turn, aborted, gone, refused. What the instances would take is told to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from prometheus_client import CollectorRegistry
from vllm.exceptions import GracefulHTTPError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

import service_classes
from llumnix.control.front_end_events import Arrived
from llumnix.control.openings import Opening
from llumnix.engine.vllm.front_end.class_metrics import ClassMetrics
from llumnix.engine.vllm.front_end.desk import Desk
from llumnix.engine.vllm.front_end.session import arrival
from llumnix.engine.vllm.front_end.ticket import Ticket, current_ticket
from llumnix.policy.classes import Classes, ServiceClass, TenantTerms
from llumnix.types import HIGH, RequestId


class Cluster:
    """Takes `free` more requests. Whoever sends one says so (`sent`)."""

    def __init__(self, free: int = 0) -> None:
        self.free = free
        self.sent: list[str] = []
        self.looked_at: list[Arrived] = []

    def look(self, asked: Arrived, ahead_tokens: float) -> Opening:
        self.looked_at.append(asked)
        return Opening(len(self.sent) < self.free)


def classes_of(*tenants: TenantTerms, **promises: float) -> Classes:
    fast = ServiceClass(name="fast", priority=HIGH, **promises)  # type: ignore[arg-type]
    return service_classes.classes_of(*tenants, classes=(fast, ServiceClass(name="slow")))


def tenant(name: str = "t", *classes: str, **limits: float) -> TenantTerms:
    return service_classes.tenant(name, *(classes or ("fast",)), **limits)


@contextmanager
def ticket_of(who: str = "t", cls: str = "") -> Iterator[Ticket]:
    ticket = Ticket([(b"x-tenant", who.encode()), (b"x-llumnix-class", cls.encode())], "X-Tenant")
    place = current_ticket.set(ticket)
    yield ticket
    current_ticket.reset(place)


class Office:
    def __init__(self, cluster: Cluster, classes: Classes) -> None:
        self.cluster = cluster
        self._registry = CollectorRegistry()
        self.desk = Desk(classes, cluster, ClassMetrics(self._registry), _arrival)

    def counted(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, labels) or 0.0

    def ask(self, name: str, who: str = "t", cls: str = "", max_tokens: int = 8) -> asyncio.Task[bool]:
        with ticket_of(who, cls):
            return asyncio.create_task(self._ask(name, max_tokens))

    async def _ask(self, name: str, max_tokens: int) -> bool:
        request = engine_request(name, sampling_params=SamplingParams(max_tokens=max_tokens))
        admitted = await self.desk.admit(request)
        if admitted:
            self.cluster.sent.append(name)
        return admitted

    def end(self, name: str, tokens: int = 1, first_s: float = 0.0, last_s: float = 0.0) -> None:
        self.cluster.sent.remove(name)
        session: Any = SimpleNamespace(id=name, tokens=[1] * tokens, first_token_s=first_s, last_token_s=last_s)
        self.desk.ended(session)


def _arrival(request: EngineCoreRequest) -> Arrived:
    return arrival(request, 0.0, only_on=None, not_exact="")


async def turn(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_no_more_are_let_by_than_there_is_room_for_however_many_come_at_once() -> None:
    office = Office(Cluster(free=2), classes_of(tenant()))
    asked = [office.ask(f"r{number}") for number in range(5)]
    await turn()
    assert office.cluster.sent == ["r0", "r1"]
    assert office.desk.held == 3
    office.end("r0")
    await turn()
    assert office.cluster.sent == ["r1", "r2"]
    office.cluster.free = 9
    office.desk.call()
    await turn(20)
    assert office.cluster.sent == ["r1", "r2", "r3", "r4"]
    assert await asyncio.gather(*asked) == [True] * 5
    assert office.counted("llumnix_admitted_requests_total", **{"class": "fast"}) == 5
    assert office.counted("llumnix_hold_seconds_count", **{"class": "fast"}) == 5


async def test_class_says_the_priority_whatever_the_request_says() -> None:
    office = Office(Cluster(free=9), classes_of(tenant("t", "fast", "slow")))
    for cls, priority in (("fast", HIGH), ("slow", 0)):
        request = engine_request(cls, priority=-7)
        with ticket_of(cls=cls):
            assert await office.desk.admit(request)
        assert request.priority == office.cluster.looked_at[-1].priority == priority


async def test_client_that_goes_while_it_waits_leaves_its_place() -> None:
    office = Office(Cluster(), classes_of(tenant(requests_per_minute=2.0)))
    asked = office.ask("r")
    await turn()
    asked.cancel()
    await turn()
    assert office.desk.held == 0
    assert asked.cancelled()
    office.cluster.free = 9
    assert all(await asyncio.gather(office.ask("a"), office.ask("b"))), "it was charged nothing"


async def test_client_that_goes_in_the_moment_of_its_turn_does_not_block_the_next() -> None:
    office = Office(Cluster(), classes_of(tenant()))
    first, second = office.ask("a"), office.ask("b")
    await turn()
    office.cluster.free = 1
    office.desk.call()
    first.cancel()
    await turn()
    assert office.cluster.sent == ["b"]
    assert await second
    assert office.desk._room.account("t").running == 1


async def test_request_that_is_aborted_by_its_name_while_it_waits_is_not_sent() -> None:
    office = Office(Cluster(), classes_of(tenant()))
    asked = office.ask("r")
    await turn()
    office.desk.abort(RequestId("r"))
    office.desk.abort(RequestId("r"))
    office.desk.abort(RequestId("another"))
    assert await asked is False
    assert office.desk.held == 0


async def test_who_waits_too_long_is_refused_by_the_clock() -> None:
    office = Office(Cluster(), classes_of(tenant(), max_hold_s=0.05))
    with ticket_of() as ticket, pytest.raises(GracefulHTTPError, match=r"It waited for 0\.05 s"):
        await asyncio.wait_for(office.desk.admit(engine_request("r")), timeout=5)
    assert ticket.declined is not None
    assert ticket.declined.status == 503
    assert office.counted("llumnix_refused_requests_total", **{"class": "fast", "code": "503"}) == 1


async def test_class_that_is_no_more_is_shown_until_nobody_waits_in_it() -> None:
    def shown(cls: str) -> float:
        office.desk.show()
        return office.counted("llumnix_held_requests", **{"class": cls})

    office = Office(Cluster(), classes_of(tenant("t", "slow", "fast")))
    waiting = office.ask("r")
    await turn()
    assert (shown("slow"), shown("fast")) == (1, 0)
    others = TenantTerms(name="t", classes=("fast",))
    office.desk.change(Classes(classes={"fast": ServiceClass(name="fast")}, tenants={"t": others}))
    assert shown("slow") == 1
    waiting.cancel()
    await turn()
    assert shown("slow") == 0


async def test_limits_are_told_with_each_answer() -> None:
    office = Office(Cluster(free=9), classes_of(tenant(requests_per_minute=1.0, tokens_per_minute=100.0)))
    with ticket_of() as ticket:
        office.desk.check()
        assert await office.desk.admit(engine_request("a", sampling_params=SamplingParams(max_tokens=7)))
    assert [(each.what, round(each.remaining)) for each in ticket.allowances] == [("requests", 0), ("tokens", 90)]
    with ticket_of() as ticket, pytest.raises(GracefulHTTPError) as refused:
        office.desk.check()
    assert refused.value.http_status == 429
    assert ticket.declined is not None
    assert ticket.declined.retry_after_s == pytest.approx(60, abs=1)
    assert len(ticket.allowances) == 2


@pytest.mark.parametrize(("who", "cls", "status"), [("eve", "", 403), ("t", "slow", 403), ("t", "none", 400)])
async def test_unknown_tenants_and_classes_are_refused_at_once(who: str, cls: str, status: int) -> None:
    office = Office(Cluster(free=9), classes_of(tenant()))
    for ask in (office.desk.check, lambda: office.desk.admit(engine_request("r")).send(None)):
        with ticket_of(who, cls) as ticket, pytest.raises(GracefulHTTPError) as refused:
            ask()
        assert refused.value.http_status == status
        assert ticket.declined is not None
    assert office.counted("llumnix_refused_requests_total", **{"class": "", "code": str(status)}) == 2


async def test_full_class_is_told_at_the_door_where_the_class_is_known() -> None:
    office = Office(Cluster(), classes_of(tenant("t", "fast", "slow"), max_held=1))
    waiting = office.ask("r")
    await turn()
    with ticket_of():
        office.desk.check()  # its body may name the other class
    with ticket_of(cls="fast"), pytest.raises(GracefulHTTPError, match="1 requests of the class fast wait already"):
        office.desk.check()
    waiting.cancel()
    await turn()


async def test_ended_requests_are_measured_against_their_targets() -> None:
    office = Office(Cluster(free=9), classes_of(tenant(), ttft_s=100.0, tpot_s=0.5))
    assert await asyncio.gather(*(office.ask(name) for name in "abc"))
    now = asyncio.get_running_loop().time()
    office.end("a", tokens=3, first_s=now + 1, last_s=now + 2)
    office.end("b", tokens=3, first_s=now + 200, last_s=now + 210)
    office.end("c", tokens=1, first_s=now + 1, last_s=now + 1)
    counted = {
        (target, met): office.counted("llumnix_class_targets_total", **{"class": "fast", "target": target, "met": met})
        for target in ("ttft", "tpot")
        for met in ("yes", "no")
    }
    assert counted == {("ttft", "yes"): 2, ("ttft", "no"): 1, ("tpot", "yes"): 1, ("tpot", "no"): 1}


async def test_what_became_of_each_tenants_requests_is_told() -> None:
    promised = classes_of(tenant("a", tokens_per_minute=40.0), tenant("b"), ttft_s=100.0)
    office = Office(Cluster(free=1), promised)
    assert await office.ask("r0", "a")
    now = asyncio.get_running_loop().time()
    waiting = [office.ask("r1", "a"), office.ask("r2", "b")]
    await turn()
    for who, status in (("a", 429), ("eve", 403)):
        with ticket_of(who), pytest.raises(GracefulHTTPError) as refused:
            await office.desk.admit(engine_request("more", sampling_params=SamplingParams(max_tokens=99)))
        assert refused.value.http_status == status
    none, a, b = office.desk.rows()
    assert (none.cls, none.tenant, none.refused) == ("", "", {"403": 1})
    assert (a.cls, a.tenant, a.held, a.running, a.refused) == ("fast", "a", 1, 1, {"429": 1})
    assert (b.tenant, b.held, b.running, b.tokens_per_minute) == ("b", 1, 0, 0)
    prompt = a.tokens_per_minute
    assert prompt > 0
    office.end("r0", tokens=5, first_s=now + 1, last_s=now + 2)
    await turn()
    _, a, b = office.desk.rows()
    assert (a.ttft_met, a.ttft_missed, a.running + b.running) == (1, 0, 1)
    assert a.tokens_per_minute + b.tokens_per_minute == 2 * prompt + 5
    for each in waiting:
        each.cancel()
    await turn()


async def test_streams_of_requests_that_never_had_a_turn_are_none_of_its_business() -> None:
    office = Office(Cluster(free=9), classes_of(tenant()))
    office.cluster.sent.append("stranger")
    office.end("stranger")
    office.desk.gone(RequestId("stranger"))
    assert office.desk._room.account("t").running == 0


async def test_request_that_was_called_and_not_sent_is_charged_nothing_and_the_next_is_called() -> None:
    office = Office(Cluster(free=1), classes_of(tenant(requests_per_minute=2.0, concurrent=1)))
    assert await office.ask("a")
    waiting = office.ask("b")
    await turn()
    office.cluster.sent.remove("a")
    office.desk.gone(RequestId("a"))
    await turn()
    assert office.cluster.sent == ["b"]
    assert await waiting
    (requests,) = office.desk._room.allowances(0.0, "t")
    assert requests.remaining == pytest.approx(1.0, abs=0.1)
