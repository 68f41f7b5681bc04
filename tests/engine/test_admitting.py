"""The engine client with `--classes`: what comes from vLLM's server passes the desk, and what ends is told there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from prometheus_client import REGISTRY
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.between import Introduction
from llumnix.engine.vllm.front_end.admitting import AdmittingClient
from llumnix.engine.vllm.front_end.classes_in_force import ClassesInForce
from llumnix.engine.vllm.front_end.ticket import Ticket, current_ticket
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.policy.classes import Classes, ServiceClass, TenantTerms
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId
from llumnix.wire.addresses import on_one_machine
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import InstanceGone, Report

A = InstanceId("i0")
ANYBODY = TenantTerms(name="others", classes=("c",), concurrent=2, tokens_per_minute=1000.0)
CLASSES = Classes(classes={"c": ServiceClass(name="c")}, tenants={}, others=ANYBODY)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AdmittingClient]:
    """Its only instance takes requests; nobody is at the other end."""
    before = set(REGISTRY._collector_to_names)
    spec = FrontEndSpec(
        index=0,
        book=on_one_machine(tmp_path),
        policy=PolicyConfig(),
        migration=MigrationConfig(),
        cluster=ClusterConfig(instances=1),
        classes=CLASSES,
    )
    stories = Stories(Journal("f0"))
    quiet = {name: lambda *_: None for name in ("replayed", "stayed", "moved", "failed", "ended")}
    client = AdmittingClient(None, spec, lambda *_: None, SimpleNamespace(**quiet, stories=stories), CLASSES)
    yield client
    for instance in list(client.members.known):  # ends what still calls it
        client.on_gone(InstanceGone(instance=instance, index=0, why="", expected=False))
    context = client.resources.ctx
    client.shutdown()
    context.destroy(linger=0)
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def report(client: AdmittingClient, seq: int, waiting: int = 0, seen: int = 0, of: InstanceId = A) -> None:
    info = InstanceInfo(id=of, index=int(of[1:]), slot=0, pid=1, node="", control="box", data="")
    load = InstanceSnapshot(
        id=of, seq=seq, at=0.0, total_blocks=100, free_blocks=90, waiting=waiting, dispatches_seen=(seen,)
    )
    client.on_report(Report(info=info, snapshot=load))
    if of not in client.members.by_id:
        client.membership.admit(client.members.known[of], Introduction(ready=b"", snapshot=load))


async def hear(client: AdmittingClient, name: str, tokens: int, reason: FinishReason | None) -> None:
    output = EngineCoreOutput(request_id=name, new_token_ids=[7] * tokens, finish_reason=reason)
    message = EngineCoreOutputs(engine_index=0, outputs=[output])
    await AdmittingClient.process_engine_outputs(client, message)


async def turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def running(client: AdmittingClient) -> int:
    return client.desk._room.account("others").running


async def test_third_request_of_a_tenant_who_may_have_two_waits_until_one_has_ended(client: AdmittingClient) -> None:
    report(client, 1)
    asked = [asyncio.create_task(client.add_request_async(engine_request(name))) for name in "abc"]
    await turn()
    assert set(client.streams.sessions) == {"a", "b"}
    assert client.queued_requests == 1
    report(client, 2, seen=2)
    await turn()
    assert set(client.streams.sessions) == {"a", "b"}
    await hear(client, "a", 5, FinishReason.STOP)
    await turn()
    assert set(client.streams.sessions) == {"b", "c"}
    assert [each.done() for each in asked] == [True] * 3


@pytest.mark.parametrize("how", ["finished", "aborted"])
async def test_what_it_did_not_make_is_given_back_when_it_ends(client: AdmittingClient, how: str) -> None:
    report(client, 1)
    await client.add_request_async(engine_request("a"))  # 3 tokens of prompt, 16 of output at most
    await hear(client, "a", 5, None)
    (before,) = client.desk._room.allowances(0.0, "others")
    if how == "aborted":
        await client.abort_requests_async(["a"])
    else:
        await hear(client, "a", 1, FinishReason.STOP)
    (after,) = client.desk._room.allowances(0.0, "others")
    assert before.remaining == 1000 - 3 - 16
    assert after.remaining == 1000 - 3 - (5 if how == "aborted" else 6)
    assert running(client) == 0


async def test_request_is_held_while_enough_wait_on_the_instance_and_goes_with_its_next_report(
    client: AdmittingClient,
) -> None:
    report(client, 1, waiting=2)
    asked = asyncio.create_task(client.add_request_async(engine_request("a")))
    await turn()
    assert client.queued_requests == 3
    report(client, 2, waiting=1)
    await asked
    assert set(client.streams.sessions) == {"a"}


async def test_request_that_is_aborted_while_it_is_held_is_never_sent(client: AdmittingClient) -> None:
    report(client, 1, waiting=2)
    asked = asyncio.create_task(client.add_request_async(engine_request("a")))
    await turn()
    await client.abort_requests_async(["a"])
    await asked
    report(client, 2)
    await turn()
    assert not client.streams.sessions
    assert client.desk.held == 0


async def test_request_that_no_instance_can_ever_have_is_told_so_at_once_and_is_charged_nothing(
    client: AdmittingClient,
) -> None:
    report(client, 1)
    with pytest.raises(GracefulHTTPError, match="No instance can take the request now"):
        await client.add_request_async(engine_request("a", data_parallel_rank=7))
    assert running(client) == 0
    (tokens,) = client.desk._room.allowances(0.0, "others")
    assert tokens.remaining == 1000.0


async def test_request_that_cannot_be_written_down_is_charged_nothing(client: AdmittingClient) -> None:
    report(client, 1)
    with pytest.raises(VLLMValidationError):
        await client.add_request_async(engine_request("a", arrival_time=2**70))
    assert running(client) == 0
    (tokens,) = client.desk._room.allowances(0.0, "others")
    assert tokens.remaining == 1000.0


async def test_while_the_only_instance_is_lost_requests_wait_for_the_next(client: AdmittingClient) -> None:
    report(client, 1, waiting=2)
    asked = asyncio.create_task(client.add_request_async(engine_request("a")))
    await turn()
    client.on_gone(InstanceGone(instance=A, index=0, why="", expected=False))
    client.desk.call()
    await turn()
    assert client.desk.held == 1
    report(client, 1, of=InstanceId("i1"))
    client.desk.call()
    await asked
    assert set(client.streams.sessions) == {"a"}


async def test_beam_search_is_refused_and_not_charged_for_each_token_of_each_beam(client: AdmittingClient) -> None:
    report(client, 1)
    beam = engine_request("b", external_req_id="cmpl-1-0123456789abcdef-beam-3")
    ticket = Ticket([], "")
    place = current_ticket.set(ticket)
    with pytest.raises(GracefulHTTPError, match="Beam search is not served with --classes") as refused:
        await client.add_request_async(beam)
    current_ticket.reset(place)
    assert refused.value.http_status == 400
    assert ticket.declined is not None, "the door answers in OpenAI's shape"
    assert ticket.declined.kind == "invalid_request_error"
    await client.add_request_async(engine_request("c", external_req_id="cmpl-my-beam-3"))
    assert set(client.streams.sessions) == {"c"}


def test_classes_that_two_front_ends_write_at_once_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = ClassesInForce(str(tmp_path)), ClassesInForce(str(tmp_path))
    begin = Path.write_bytes

    def meanwhile(path: Path, content: bytes) -> int:
        monkeypatch.setattr(Path, "write_bytes", begin)
        written = path.write_bytes(content)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        theirs.write(Classes(classes={}, tenants={}, others=ANYBODY))
        return written

    monkeypatch.setattr(Path, "write_bytes", meanwhile)
    ours.write(CLASSES)
    assert ours.read() == theirs.read() == CLASSES


async def test_request_that_is_there_only_to_be_aborted_takes_nobodys_place(client: AdmittingClient) -> None:
    """With the tenant's two places taken: vLLM frees so what a rejected request left at another engine."""
    report(client, 1)
    for name in "ab":
        await client.add_request_async(engine_request(name))
    await asyncio.wait_for(client.add_request_async(engine_request("c", abort_immediately=True)), 10)
    assert (set(client.streams.sessions), client.queued_requests, running(client)) == ({"a", "b"}, 0, 2)


async def test_session_has_one_place_from_its_first_chunk_to_its_end(client: AdmittingClient) -> None:
    report(client, 1)
    for _ in range(3):
        await client.add_request_async(engine_request("a", resumable=True))
        await hear(client, "a", 5, FinishReason.LENGTH)
        assert running(client) == 1
    await client.add_request_async(engine_request("a"))
    assert running(client) == 0
