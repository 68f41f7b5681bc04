"""What may begin on the mailbox's thread, and what waits until the main thread looks."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from llumnix.control.messages import Commit, Copy
from llumnix.engine.vllm.instance.block_tables import Layout
from llumnix.engine.vllm.instance.early_pulls import EarlyPulls, LaidOut, Origin
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.wire.to_worker import PullBlocks

KEY = RequestId("r"), Epoch(3)
LAYOUT = Layout([[11, 12, 13, 14, 15]], [(0, 4)], 4)
ORIGIN = Origin(InstanceId("i0"), ("there",), 5.0)
EXPECTED: dict[str, Any] = {
    "request": KEY[0], "epoch": KEY[1], "sender": InstanceId("i0"), "stage": 2, "first_block": 2
}  # fmt: skip
THE_NEXT_TWO = Copy(**EXPECTED, blocks=2, block_ids=(7, 8))


def early(state_blocks: tuple[int, ...] = ()) -> tuple[EarlyPulls, list[PullBlocks]]:
    orders: list[PullBlocks] = []
    pulls = EarlyPulls(orders.append)
    pulls.lay_out(KEY, LaidOut(ORIGIN, 2, 2, LAYOUT, state_blocks))
    return pulls, orders


def test_expected_blocks_are_pulled_to_where_they_were_laid_out() -> None:
    pulls, orders = early()
    pulls.begin(THE_NEXT_TWO)
    (order,) = orders
    assert (order.source_blocks, order.target_blocks) == ((7, 8), (13, 14))
    assert (order.stage, order.addresses, order.timeout_s) == (2, ("there",), 5.0)
    assert pulls.take_back(KEY) == order
    assert pulls.take_back(KEY) is None


def test_state_comes_with_the_last_blocks_alone() -> None:
    pulls, orders = early(state_blocks=(21,))
    pulls.begin(Commit(**EXPECTED, blocks=2, state_blocks=1, block_ids=(7, 8, 9)))
    (order,) = orders
    assert order.target_blocks == (13, 14, 21)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"sender": InstanceId("i2")}, id="somebody else's"),
        pytest.param({"epoch": Epoch(4)}, id="another attempt's"),
        pytest.param({"request": RequestId("s")}, id="another request's"),
        pytest.param({"stage": 1}, id="one that is here"),
        pytest.param({"stage": 3}, id="one too far"),
        pytest.param({"first_block": 3}, id="with a gap before it"),
        pytest.param({"blocks": 4, "block_ids": (5, 6, 7, 8)}, id="more than was laid out"),
        pytest.param({"block_ids": (7,)}, id="fewer ids than blocks"),
        pytest.param({"block_ids": (7, -1)}, id="ids that cannot be"),
        pytest.param({"block_ids": (0, 0)}, id="nothing but what its window has left behind"),
    ],
)
def test_what_does_not_fit_waits_for_the_main_thread(message: dict[str, Any]) -> None:
    pulls, orders = early()
    pulls.begin(Copy(**{**EXPECTED, "blocks": 2, "block_ids": (7, 8)} | message))
    assert orders == []
    assert pulls.take_back(KEY) is None


def test_nothing_begins_once_it_was_taken_back() -> None:
    pulls, orders = early()
    pulls.take_back(KEY)
    pulls.begin(THE_NEXT_TWO)
    assert orders == []


def test_the_same_letter_twice_begins_once() -> None:
    pulls, orders = early()
    pulls.begin(THE_NEXT_TWO)
    pulls.begin(THE_NEXT_TWO)
    assert len(orders) == 1
