"""How a front end's parts are put together, without an engine behind them."""

from __future__ import annotations

import argparse
import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.front_end import serve, stream_log
from llumnix.engine.vllm.front_end.members import Members
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId
from llumnix.wire.addresses import on_one_machine
from llumnix.wire.base import InstanceInfo
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import Report
from llumnix.wire.to_front_end import FRONT_END_MAIL


async def test_what_comes_while_it_waits_for_its_first_instance_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: asyncio.Queue[Report] = asyncio.Queue()
    parts = {"members": Members(), "membership": SimpleNamespace(), "shared_state": SimpleNamespace()}
    client = SimpleNamespace(**parts, on_report=heard.put_nowait, doorkeeper=None)

    def llm(*_: Any) -> SimpleNamespace:
        return SimpleNamespace(engine_core=client, grow=None, abort_here=None, shutdown=lambda: None)

    monkeypatch.setattr(serve, "LlumnixLLM", llm)
    monkeypatch.setattr(stream_log, "Metrics", SimpleNamespace)  # the real ones are of a process, not of a test
    book = on_one_machine(tmp_path)
    knobs = {"policy": PolicyConfig(), "migration": MigrationConfig(), "cluster": ClusterConfig()}
    spec = FrontEndSpec(index=0, book=book, **knobs)  # type: ignore[arg-type]
    sock = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(serve.serve_front_end(argparse.Namespace(), None, spec, sock, None, None))
    await asyncio.sleep(0)
    info = InstanceInfo(id=InstanceId("i0"), index=0, slot=0, pid=1, node="here", control="", data="")
    load = InstanceSnapshot(id=info.id, at=1.0, seq=1, total_blocks=9, free_blocks=9)
    sender = Mailbox(f"ipc://{tmp_path}/sender", FRONT_END_MAIL, lambda _: None)
    sender.post(book.front_end(0), Report(info=info, snapshot=load))
    async with asyncio.timeout(10):
        assert (await heard.get()).info.id == "i0"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    sender.close()
    assert sock.fileno() == -1, "closed"
