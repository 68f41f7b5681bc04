"""Blocks by NIXL: what is given up, who is not read, and (where the package is installed) the library itself."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transport_ends import PLENTY_S, SECRET, finished

from llumnix.transport import nixl
from llumnix.transport.memory import MemoryPool
from llumnix.transport.nixl import NixlReader
from llumnix.transport.port import PullResult, TransportError
from llumnix.transport.sockets import SocketOptions, SocketTransport

BLOCKS, WORDS, LAYERS = 16, 512, 3
needs_nixl = pytest.mark.skipif(importlib.util.find_spec("nixl_cu13") is None, reason="nixl-cu13 is not installed")


def memory(fill: int) -> list[torch.Tensor]:
    whole = torch.arange(LAYERS * BLOCKS * WORDS, dtype=torch.int64).view(LAYERS, BLOCKS, WORDS) + fill
    return list(whole)


def end(views: list[torch.Tensor], folder: Path, *readers: NixlReader) -> SocketTransport:
    pool = MemoryPool.of_arrays(views, fingerprint="x")
    return SocketTransport(pool, SECRET, SocketOptions(folder=folder, tcp_host=None), readers)


class NixlError(Exception):
    pass


class Agent:
    """Reads when it is told to; the memory is this process's."""

    def __init__(self) -> None:
        self.may_land = threading.Event()
        self.reaches = True
        self.reads = 0

    def register_memory(self, memory: Any, kind: str) -> None:
        assert kind == "DRAM"

    def deregister_memory(self, _registered: None) -> None: ...

    def get_agent_metadata(self) -> bytes:
        return b"metadata"

    def add_remote_agent(self, metadata: bytes) -> bytes:
        if not self.reaches:
            raise NixlError("no way")
        assert metadata == b"metadata"
        return b"peer"

    def remove_remote_agent(self, peer: str) -> None: ...

    def get_xfer_descs(self, rows: Any, mem_type: str) -> Any:
        return rows

    def initialize_xfer(self, operation: str, ours: Any, theirs: Any, peer: str, note: bytes) -> Any:
        self.reads += 1
        return ours, theirs

    def transfer(self, handle: Any) -> str:
        return self.check_xfer_state(handle)

    def check_xfer_state(self, handle: Any) -> str:
        if not self.may_land.is_set():
            return "PROC"
        for (to, size, _), (source, _, _) in zip(*(rows.tolist() for rows in handle), strict=True):
            torch.frombuffer(_bytes(to, size), dtype=torch.uint8).copy_(
                torch.frombuffer(_bytes(source, size), dtype=torch.uint8)
            )
        return "DONE"

    def release_xfer_handle(self, handle: Any) -> None: ...


def _bytes(address: int, size: int) -> Any:
    import ctypes

    return (ctypes.c_char * size).from_address(address)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    made = Agent()
    monkeypatch.setattr(nixl, "_quiet_agent", lambda: (made, (NixlError,)))
    return made


@pytest.fixture
def pair(agent: Agent, tmp_path: Path) -> Iterator[tuple[Any, Any, list[torch.Tensor], list[torch.Tensor]]]:
    mine, theirs = memory(0), memory(100_000)
    here, there = end(mine, tmp_path, NixlReader(mine)), end(theirs, tmp_path, NixlReader(theirs))
    yield here, there, mine, theirs
    agent.may_land.set()
    for each in (here, there):
        each.close()


def same(mine: list[torch.Tensor], theirs: list[torch.Tensor], targets: list[int], sources: list[int]) -> bool:
    return all(torch.equal(here[targets], there[sources]) for here, there in zip(mine, theirs, strict=True))


def test_blocks_are_read(agent: Agent, pair: Any) -> None:
    here, there, mine, theirs = pair
    agent.may_land.set()
    pull = here.pull(there.address, [3, 1], [0, 5], PLENTY_S, on_done=lambda _: None, on_released=pytest.fail)
    assert finished(pull.wait(PLENTY_S)).bytes_read == 2 * LAYERS * WORDS * 8
    assert same(mine, theirs, [0, 5], [3, 1])
    assert agent.reads == 1


def test_blocks_of_a_read_that_was_given_up_are_kept_until_nothing_can_land_there(agent: Agent, pair: Any) -> None:
    here, there, mine, theirs = pair
    results: list[PullResult] = []
    released = threading.Event()
    pull = here.pull(there.address, [3], [0], 0.1, on_done=results.append, on_released=released.set)
    result = finished(pull.wait(PLENTY_S))
    assert (result.ok, result.quarantined, results) == (False, True, [result])
    assert not released.wait(0.05)
    agent.may_land.set()
    assert released.wait(PLENTY_S)
    assert same(mine, theirs, [0], [3]), "and bytes have landed"
    for thread in threading.enumerate():
        if thread.name == "kv-late":
            thread.join(PLENTY_S)
            assert not thread.is_alive(), "nobody looks on"


def test_source_in_another_pid_namespace_is_not_read(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UCX would take plain TCP, where a puller that dies can take the source along."""
    mine, theirs = memory(0), memory(100_000)
    here = end(mine, tmp_path, NixlReader(mine))
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[1]")
    there = end(theirs, tmp_path, NixlReader(theirs))
    pull = here.pull(there.address, [3], [0], PLENTY_S, on_done=lambda _: None, on_released=pytest.fail)
    assert finished(pull.wait(PLENTY_S)).ok
    assert same(mine, theirs, [0], [3])
    assert agent.reads == 0
    for each in (here, there):
        each.close()


def test_source_that_nixl_does_not_reach_is_asked_for_its_bytes(agent: Agent, pair: Any) -> None:
    here, there, mine, theirs = pair
    agent.reaches = False
    for _ in range(2):
        pull = here.pull(there.address, [3], [0], PLENTY_S, on_done=lambda _: None, on_released=pytest.fail)
        assert finished(pull.wait(PLENTY_S)).ok
    assert same(mine, theirs, [0], [3])


def test_no_nixl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl_cu13", None)
    with pytest.raises(TransportError, match=r"pip install nixl-cu13==1\.5\.1"):
        NixlReader(memory(0))


# -- the library itself, over host memory


def serve(pipe: Connection, folder: Path) -> None:
    views = memory(100_000)
    transport = end(views, folder, NixlReader(views))
    pipe.send(transport.address)
    pipe.recv()
    transport.close()


@contextmanager
def source(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Its address, and what kills it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, folder), daemon=True)
    process.start()
    try:
        assert ours.poll(60)

        def kill() -> None:
            process.kill()
            process.join()

        yield ours.recv(), kill
    finally:
        process.kill()
        process.join()


@needs_nixl
def test_library_reads_another_process_and_outlives_it(tmp_path: Path) -> None:
    mine, theirs = memory(0), memory(100_000)
    reader = NixlReader(mine)
    here = end(mine, tmp_path, reader)
    order = np.random.default_rng(0)
    with source(tmp_path) as (one, kill), source(tmp_path) as (other, _):
        for address in (one, other, one):
            targets, sources = order.permutation(BLOCKS).tolist(), order.permutation(BLOCKS).tolist()
            pull = here.pull(address, sources, targets, PLENTY_S, on_done=lambda _: None, on_released=pytest.fail)
            assert finished(pull.wait(PLENTY_S)).reason == ""
            assert same(mine, theirs, targets, sources)
        assert len(reader._peers) == 2
        kill()
        dead = here.pull(one, [1], [1], PLENTY_S, on_done=lambda _: None, on_released=lambda: None)
        assert not finished(dead.wait(PLENTY_S)).ok
        alive = here.pull(other, [2], [2], PLENTY_S, on_done=lambda _: None, on_released=pytest.fail)
        assert finished(alive.wait(PLENTY_S)).ok
        assert same(mine, theirs, [2], [2])
    here.close()
