"""The launcher's own children, as processes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from llumnix.classes_file import MOST_TENANTS
from llumnix.cluster import children
from llumnix.cluster.children import NurseryProcess
from llumnix.cluster.nursery_messages import (
    Forked,
    ForkInstance,
    StopListening,
    channel,
    encode,
    receive_from_launcher,
    send,
)
from llumnix.cluster.orders_to_children import load_engine
from llumnix.flags import parse_serve
from llumnix.policy.classes import Classes, TenantTerms
from llumnix.types import InstanceId
from llumnix.wire.addresses import on_one_machine

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

ENVIRONMENT = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}

MANY = 2000
"""A channel holds fewer than 300 each way."""


def test_orders_and_news_of_many_instances_do_not_wait_for_each_other() -> None:
    """As when a thousand are told to end, and do."""
    nursery = NurseryProcess(ENVIRONMENT, log=None, module="talkative_nursery")
    for number in range(MANY):
        nursery.send(ForkInstance(id=InstanceId(f"i{number}"), index=number, slot=number))
    news = [nursery.receive() for _ in range(MANY)]
    assert news == [Forked(child=f"i{number}", pid=number) for number in range(MANY)]
    nursery.end()


def test_order_of_any_length_gets_there_whole(tmp_path: Path) -> None:
    """As with a classes file of many tenants. A socket takes some 200 KB at once."""
    terms = TenantTerms(name=64 * "t", key_sha256=64 * "0", classes=tuple(64 * c for c in "abcdef"))
    classes = Classes(classes={}, tenants={f"{n:064}": terms for n in range(MOST_TENANTS)})
    order = load_engine(replace(parse_serve([]), classes=classes), "", "here", on_one_machine(tmp_path), None)
    assert len(encode(order)) > 500_000
    launcher, nursery = channel()
    with launcher, nursery, ThreadPoolExecutor() as aside:
        sent = aside.submit(send, launcher, order)
        assert receive_from_launcher(nursery) == order
        sent.result()


def test_nursery_that_cannot_be_told_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(105, "No buffer space available")

    monkeypatch.setattr(children, "send", full)
    nursery = NurseryProcess(ENVIRONMENT, log=None, module="talkative_nursery")
    nursery.send(StopListening())
    assert nursery.receive() is None
    assert nursery.end() == "it cannot be told what to do: [Errno 105] No buffer space available"
