"""A step computes requests of `--max-loras` adapters at most. Who is handed over, or arrives, has a place there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from small_engine import SmallEngine
from vllm.config import LoRAConfig
from vllm.lora.request import LoRARequest
from vllm.v1.request import Request

from llumnix.engine.vllm.instance.early_pulls import NoAdapter, Origin
from llumnix.engine.vllm.instance.incoming import IncomingRequests
from llumnix.engine.vllm.instance.snapshot import request_snapshots
from llumnix.types import InstanceId, RequestId

NORTH, SOUTH, EAST = (LoRARequest(name, number, "/none") for number, name in enumerate(("north", "south", "east"), 1))


def add(engine: SmallEngine, name: str, adapter: LoRARequest | None) -> Request:
    engine.add(name, 0, prompt_tokens=8)
    request = engine.scheduler.requests[name]
    request.lora_request = adapter
    return request


@pytest.fixture
def one_place(engine: SmallEngine) -> SmallEngine:
    engine.scheduler.lora_config = LoRAConfig(max_loras=1)
    return engine


def test_one_whose_hand_over_fails_finds_the_place_of_its_adapter(one_place: SmallEngine) -> None:
    """vLLM ends an engine that runs requests of more adapters than a step has places for."""
    engine, scheduler = one_place, one_place.scheduler
    leaves = add(engine, "leaves", NORTH)
    engine.step()
    add(engine, "queued", SOUTH)
    scheduler.lend(leaves)
    engine.step()
    assert engine.running == []
    scheduler.take_back(leaves)
    engine.step()
    assert engine.running == ["leaves"]
    engine.scheduler.release(RequestId("leaves"))
    engine.step()
    assert engine.running == ["queued"]


def test_kept_place_is_shared_by_those_of_the_same_adapter_and_of_none(one_place: SmallEngine) -> None:
    engine, scheduler = one_place, one_place.scheduler
    leaves = add(engine, "leaves", NORTH)
    engine.step()
    scheduler.lend(leaves)
    add(engine, "other", SOUTH)
    add(engine, "same", NORTH)
    add(engine, "none", None)
    engine.step()
    assert engine.running == ["same", "none"]
    scheduler.take_back(leaves)
    engine.step()
    assert engine.running == ["leaves", "same", "none"]


def test_places_that_nobody_is_kept_are_given_once(engine: SmallEngine) -> None:
    engine.scheduler.lora_config = LoRAConfig(max_loras=2)
    leaves = add(engine, "leaves", NORTH)
    engine.step()
    engine.scheduler.lend(leaves)
    for name, adapter in (("first", SOUTH), ("second", EAST), ("third", SOUTH)):
        add(engine, name, adapter)
    engine.step()
    assert engine.running == ["first", "third"]
    engine.scheduler.take_back(leaves)
    engine.step()
    assert engine.running == ["leaves", "first", "third"]


def test_choice_of_a_victim_is_shown_who_has_an_adapter(engine: SmallEngine) -> None:
    add(engine, "with", NORTH)
    add(engine, "without", None)
    shown = request_snapshots(engine.scheduler, "")
    assert [(each.id, each.has_adapter) for each in shown] == [("with", True), ("without", False)]


class Target:
    """An engine that takes requests from elsewhere."""

    def __init__(self, engine: SmallEngine) -> None:
        self.engine = engine
        workers: Any = SimpleNamespace(order=None, count=1, tell=lambda *_: None)
        self.incoming = IncomingRequests(engine.scheduler, None, workers, lambda adapter: True)

    def reserve(self, name: str, adapter: LoRARequest | None, blocks: int = 1) -> Request:
        request = self.engine.make(name, 0, prompt_tokens=8)
        request.lora_request = adapter
        request.append_output_token_ids(7)
        self.incoming.reserve((RequestId(name), 1), request, blocks, Origin(InstanceId("i0"), (), 5.0))
        return request


def test_stream_is_not_taken_where_its_adapter_has_no_place(one_place: SmallEngine) -> None:
    """It would stand still here, with its memory, for as long as others use theirs."""
    target = Target(one_place)
    add(one_place, "runs", NORTH)
    one_place.step()
    with pytest.raises(NoAdapter, match="other adapters have all places that a step has for them"):
        target.reserve("arrives", SOUTH)
    assert not one_place.scheduler.places
    target.reserve("same", NORTH)
    target.reserve("none", None)
    target.reserve("queued at the source", SOUTH, blocks=0)


def test_stream_that_arrives_finds_the_place_that_its_adapter_was_promised(one_place: SmallEngine) -> None:
    engine, scheduler = one_place, one_place.scheduler
    target = Target(engine)
    arrives = target.reserve("arrives", NORTH)
    with pytest.raises(NoAdapter, match="other adapters"):
        target.reserve("another", SOUTH)
    add(engine, "queued", SOUTH)
    engine.step()
    assert engine.running == []
    scheduler.places.arriving.clear()
    scheduler.adopt(arrives, computed_tokens=8)
    with pytest.raises(NoAdapter, match="other adapters"):
        target.reserve("another", SOUTH)
    engine.step()
    assert engine.running == ["arrives"]


def test_one_that_leaves_again_before_its_first_step_keeps_its_place(one_place: SmallEngine) -> None:
    engine, scheduler = one_place, one_place.scheduler
    arrives = Target(engine).reserve("arrives", NORTH)
    scheduler.places.arriving.clear()
    scheduler.adopt(arrives, computed_tokens=8)
    scheduler.lend(arrives)
    add(engine, "queued", SOUTH)
    engine.step()
    assert (engine.running, scheduler.is_lent(arrives)) == ([], True)
    scheduler.take_back(arrives)
    engine.step()
    assert (engine.running, scheduler.is_lent(arrives)) == (["arrives"], False)
