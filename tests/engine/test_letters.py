"""Whom an instance writes to, and until when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from llumnix.control import commands
from llumnix.control.messages import Commit, Prepared
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.engine.vllm.instance.letters import Letters
from llumnix.engine.vllm.instance.state import decode_hand, stamp
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.wire.base import InstanceInfo


def instance(number: int) -> InstanceInfo:
    return InstanceInfo(
        id=InstanceId(f"i{number}"), index=number, slot=0, pid=1, node="", control=f"ipc://i{number}", data=""
    )


def test_way_to_a_peer_is_closed_when_it_is_gone_and_not_opened_again_by_its_last_words() -> None:
    posted: list[str] = []
    closed: list[str] = []
    names = (
        "scheduler",
        "structured_output",
        "workers",
        "post",
        "ship",
        "put_output",
        "wake_at",
        "clock",
        "has_adapter",
    )
    engine: Any = dict.fromkeys(names) | {"info": instance(0), "pins": "", "forget": closed.append}
    letters = Letters(EngineAccess(**engine, post_soon=lambda addresses, _letter: posted.extend(addresses)), book=None)  # type: ignore[arg-type]
    answer = commands.Send(
        InstanceId("i1"), Prepared(request=RequestId("r"), epoch=Epoch(1), sender=InstanceId("i0"), skip_blocks=0)
    )
    letters.met(instance(1))
    letters.send(answer)
    assert posted == ["ipc://i1"]
    letters.lost(InstanceId("i1"))
    letters.met(instance(1))
    letters.send(answer)
    assert (posted, closed, letters.peer(InstanceId("i1"))) == (["ipc://i1"], ["ipc://i1"], None)


def committed_state(sampling: SamplingParams, v2: bool) -> tuple[bytes | None, list[str]]:
    """What is sent of the request's random generator, and what workers were asked for that."""
    request = Request("r", [1, 2, 3], sampling, None)
    stamp(request, engine_request("r"))
    tables = SimpleNamespace(ids=lambda *_: [], states=SimpleNamespace(after=lambda *_: []))
    names = ("structured_output", "ship", "post_soon", "put_output", "wake_at", "clock", "has_adapter", "forget")
    posted: list[Any] = []
    asked: list[str] = []

    def ask(method: str, *_: object) -> list[bytes]:
        asked.append(method)
        return [b"first stage", b"last stage"]

    engine: Any = dict.fromkeys(names) | {"info": instance(0), "pins": ""}
    engine["scheduler"] = SimpleNamespace(requests={"r": request}, tables=tables, use_v2_model_runner=v2)
    engine["workers"] = SimpleNamespace(ask=ask)
    letters = Letters(EngineAccess(**engine, post=lambda _, letter: posted.append(letter)), book=None)  # type: ignore[arg-type]
    letters.met(instance(1))
    commit = Commit(
        request=RequestId("r"),
        epoch=Epoch(1),
        sender=InstanceId("i0"),
        stage=1,
        first_block=0,
        blocks=0,
    )
    letters.send(commands.Send(InstanceId("i1"), commit))
    return decode_hand(posted[0].message.payload).sampler_state, asked


def test_random_generator_is_that_of_the_last_worker() -> None:
    """In a pipeline the others never draw."""
    assert committed_state(SamplingParams(seed=1), v2=False) == (b"last stage", ["llumnix_sampler_state"])


@pytest.mark.parametrize(
    ("sampling", "v2"),
    [(SamplingParams(seed=1), True), (SamplingParams(), False), (SamplingParams(temperature=0.0, seed=1), False)],
)
def test_nobody_waits_for_workers_where_there_is_no_generator(sampling: SamplingParams, v2: bool) -> None:
    """With several workers the answer comes after the step in flight, and the stream stands still."""
    assert committed_state(sampling, v2) == (None, [])
