"""Requests with a LoRA adapter go to instances that have it, new ones and those that lost theirs."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from test_streams import A, B, FrontEnd, _token
from vllm.lora.request import LoRARequest

from llumnix.control.front_end_events import GiveUp
from llumnix.types import InstanceId, RequestId

SOUTH, WEST = LoRARequest("south", 1, "/south"), LoRARequest("west", 2, "/west")


def front_end_where_b_lacks_south() -> FrontEnd:
    front = FrontEnd(A, B)
    front.streams.equipped(B, (SOUTH.lora_int_id,))
    return front


@pytest.mark.parametrize(("lora", "where"), [(SOUTH, {A}), (WEST, {A, B}), (None, {A, B})])
def test_new_requests_go_to_who_has_it(lora: LoRARequest | None, where: set[InstanceId]) -> None:
    front = front_end_where_b_lacks_south()
    assert {front.open(f"r{n}", lora_request=lora) for n in range(6)} == where


def test_nobody_has_it() -> None:
    front = front_end_where_b_lacks_south()
    front.streams.equipped(A, (SOUTH.lora_int_id,))
    refused = front.streams.open(engine_request("r", lora_request=SOUTH))
    assert refused == GiveUp(RequestId("r"), "No instance can load the adapter 'south' now.")


def test_stream_whose_instance_is_lost_goes_to_one_that_has_it_or_ends_saying_why() -> None:
    front = front_end_where_b_lacks_south()
    assert front.open("r", lora_request=SOUTH) == A
    front.streams.sort_out(A, [_token("r", 7)])
    front.lose(A)
    assert front.resumed == []
    assert ["south" in why for why in front.why_failed] == [True]
    assert [end.request_id for end in front.given_up] == ["r"]


def test_stream_waits_while_nobody_is_there_who_could_lack_it() -> None:
    front = FrontEnd(A)
    front.open("r", lora_request=SOUTH)
    front.streams.sort_out(A, [_token("r", 7)])
    front.lose(A)
    assert (front.streams.parked, front.why_failed) == (1, [])
    front.join(B)
    assert [instance for instance, _ in front.resumed] == [B]
