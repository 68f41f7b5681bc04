"""How a move that failed is remembered at its source."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from vllm.v1.request import Request, RequestStatus

from containers import larger_than
from llumnix.config import MigrationConfig, PolicyConfig
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import Prepare, Refused
from llumnix.control.orders import MoveCause, MoveId, MoveOrder
from llumnix.engine.vllm.instance.driver import LlumletDriver
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.engine.vllm.instance.state import stamp
from llumnix.engine.vllm.instance.steps import StepsInFlight
from llumnix.policy.catalogue import find_policy
from llumnix.policy.victim import Wanted, choose_victims
from llumnix.types import InstanceId, RequestId
from llumnix.wire.base import InstanceInfo
from llumnix.wire.outbox import Mail
from llumnix.wire.to_instance import MoveOut, Peer
from llumnix.wire.to_scheduler import MoveAnswer

I0, I1 = (InstanceInfo(id=InstanceId(f"i{n}"), index=n, slot=n, pid=n, node="", control="", data="") for n in (0, 1))


class Scheduler:
    """Five requests run, of 1 to 5 blocks."""

    block_tokens = 16
    num_spec_tokens = 0
    max_model_len = 2048
    tables = SimpleNamespace(state_blocks=0, pin=lambda *_: [], unpin=lambda _: None)
    counts = SimpleNamespace(to_hold=lambda tokens: -(-tokens // 16))
    steps = StepsInFlight()
    last_steps = ()

    def __init__(self) -> None:
        self.ended: list[Any] = []
        self.waiting = SimpleNamespace(first=lambda count: [])
        self.kv_holding_waiting: list[Request] = []
        self.running = [self._request(n) for n in range(5)]
        self.requests = {request.request_id: request for request in self.running}
        self.kv_cache_manager = SimpleNamespace(block_pool=SimpleNamespace(num_gpu_blocks=100))

    def _request(self, number: int) -> Request:
        original = engine_request(f"r{number}", prompt_token_ids=[1] * (16 * number + 8))
        request = Request.from_engine_core_request(original, None)
        request.status = RequestStatus.RUNNING
        request.append_output_token_ids([7])
        stamp(request, original)
        return request

    def is_queued(self, _request: Request) -> bool:
        return False

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // 16)


class Source:
    """Its driver gives requests away, and everybody refuses them."""

    def __init__(self) -> None:
        self.at = 0.0
        self.asked: list[RequestId] = []
        self._sent: list[Mail] = []
        engine: Any = dict.fromkeys(
            ("structured_output", "post", "ship", "forget", "has_adapter", "put_output", "wake_at"), _nothing
        ) | {"workers": SimpleNamespace(order=_nothing)}
        rule = find_policy("llumnix").victim
        self.driver = LlumletDriver(
            EngineAccess(
                **engine,
                info=I0,
                scheduler=Scheduler(),  # type: ignore[arg-type]
                pins="",
                post_soon=lambda _addresses, message: self._sent.append(message),
                clock=lambda: self.at,
            ),
            Llumlet(I0.id, MigrationConfig(), partial(choose_victims, rule), PolicyConfig().request_cooldown_s),
            MigrationConfig(),
            book=None,  # type: ignore[arg-type]
        )

    def asked_for(self, request: str) -> str | None:
        """Why it is not moved."""
        order = MoveOrder(
            move_id=MoveId("m"), target=I1.id, cause=MoveCause.BY_HAND, reason="", request=RequestId(request)
        )
        self.driver.move_out(MoveOut(order=order, target=I1, reply_to="a front end"))
        (answer,) = (each for each in self._sent if isinstance(each, MoveAnswer))
        return answer.outcome.why_not

    def move_out(self, number: int) -> None:
        wanted = Wanted(room_blocks=100)
        order = MoveOrder(move_id=MoveId(str(number)), target=I1.id, cause=MoveCause.BALANCE, reason="", wanted=wanted)
        self.driver.move_out(MoveOut(order=order, target=I1, reply_to=""))
        for letter in [each.message for each in self._sent if isinstance(each, Peer)]:
            if isinstance(letter, Prepare):
                self.asked.append(letter.request)
                refused = Refused(
                    request=letter.request, epoch=letter.epoch, sender=I1.id, reason="no such adapter here"
                )
                self.driver.peer_said(Peer(sender=I1, message=refused), None)
        self._sent.clear()


def _nothing(*_: object) -> None:
    pass


def test_one_that_everybody_refuses_lets_the_others_go_first() -> None:
    """It is the cheapest to move, but whoever was refused a moment ago is not asked again at once."""
    source = Source()
    for number in range(10):
        source.at = number * 0.1
        source.move_out(number)
    assert source.asked == [f"r{n}" for n in range(5)], "each once within its cooldown"


def test_reason_why_nothing_leaves_an_instance_just_now_is_told() -> None:
    source = Source()
    source.driver.incoming.closed = "the caches here are about to be reset"
    assert source.asked_for("r0") == "it is pinned to its instance: the caches here are about to be reset"


def test_driver_holds_what_is_under_way_and_its_last_orders() -> None:
    source = Source()
    for number in range(3_000):
        source.at = float(number)
        source.move_out(number)
    transcript = dict.fromkeys(("Transcript._older", "Transcript._newer"), 1000)
    assert larger_than(64, {"VllmBody._asked_by": 1024, **transcript}, source.driver) == {}
