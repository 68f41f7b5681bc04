"""The launcher's own children, as processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llumnix.cluster.children import NurseryProcess
from llumnix.cluster.nursery_messages import Forked, ForkInstance
from llumnix.types import InstanceId

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

MANY = 2000
"""A channel holds fewer than 300 each way."""


def test_orders_and_news_of_many_instances_do_not_wait_for_each_other() -> None:
    """As when a thousand are told to end, and do."""
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    nursery = NurseryProcess(environment, log=None, module="talkative_nursery")
    for number in range(MANY):
        nursery.send(ForkInstance(id=InstanceId(f"i{number}"), index=number, slot=number))
    news = [nursery.receive() for _ in range(MANY)]
    assert news == [Forked(child=f"i{number}", pid=number) for number in range(MANY)]
    nursery.end()
