"""Blocks by NIXL: what is given up, who is not read, and (where the package is installed) the library itself."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transport_ends import PLENTY_S, SECRET, End, finished

from llumnix.transport import nixl
from llumnix.transport.memory import MemoryPool
from llumnix.transport.nixl import NixlReader
from llumnix.transport.port import PullResult, TransportError
from llumnix.transport.sockets import SocketOptions, SocketTransport

BLOCKS, WORDS, LAYERS = 16, 512, 3
LIBRARY = Path(sys.prefix, "nixl")
"""Where `make nixl` puts it."""
needs_nixl = pytest.mark.skipif(not (LIBRARY / "made-from").exists(), reason="there is no NIXL (make nixl)")


def memory(fill: int) -> list[torch.Tensor]:
    return list(torch.arange(LAYERS * BLOCKS * WORDS, dtype=torch.int64).view(LAYERS, BLOCKS, WORDS) + fill)


def end(folder: Path, fill: int) -> tuple[End, NixlReader]:
    views = memory(fill)
    pool = MemoryPool.of_arrays(views, fingerprint="x")
    reader = NixlReader(views)
    transport = SocketTransport(pool, SECRET, SocketOptions(folder=folder, tcp_host=None), (reader,))
    return End(transport, [view.numpy() for view in views]), reader


class NixlError(Exception):
    pass


class Agent:
    """Reads when it is told to; the memory is this process's."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.may_land = threading.Event()
        self.reaches = True
        self.breaks = False
        self.reads = 0
        self.met = 0
        self.handles = 0

    def register_memory(self, memory: Any, kind: str) -> None:
        assert kind == "DRAM"

    def deregister_memory(self, _registered: None) -> None: ...

    def get_agent_metadata(self) -> bytes:
        return b"metadata"

    def add_remote_agent(self, metadata: bytes) -> bytes:
        if not self.reaches:
            raise NixlError("no way")
        assert metadata == b"metadata"
        self.met += 1
        return b"peer"

    def remove_remote_agent(self, peer: str) -> None:
        self.met -= 1

    def get_xfer_descs(self, rows: Any, mem_type: str) -> Any:
        return rows

    def initialize_xfer(self, operation: str, ours: Any, theirs: Any, peer: str, note: bytes) -> Any:
        self.reads += 1
        self.handles += 1
        self.began.set()
        return ours, theirs

    def transfer(self, handle: Any) -> str:
        return self.check_xfer_state(handle)

    def check_xfer_state(self, handle: Any) -> str:
        if self.breaks:
            raise NixlError("the peer is gone")
        if not self.may_land.is_set():
            return "PROC"
        for (to, size, _), (source, _, _) in zip(*(rows.tolist() for rows in handle), strict=True):
            torch.frombuffer(_bytes(to, size), dtype=torch.uint8).copy_(
                torch.frombuffer(_bytes(source, size), dtype=torch.uint8)
            )
        return "DONE"

    def release_xfer_handle(self, handle: Any) -> None:
        self.handles -= 1


def _bytes(address: int, size: int) -> Any:
    import ctypes

    return (ctypes.c_char * size).from_address(address)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    made = Agent()
    monkeypatch.setattr(nixl, "_quiet_agent", lambda: (made, (NixlError,)))
    return made


@pytest.fixture
def pair(agent: Agent, tmp_path: Path) -> Iterator[tuple[End, End]]:
    (here, _), (there, _) = end(tmp_path, 0), end(tmp_path, 100_000)
    yield here, there
    agent.may_land.set()
    for each in (here, there):
        each.transport.close()


def same(here: End, theirs: Sequence[Any], targets: list[int], sources: list[int]) -> bool:
    both = zip(here.memory, theirs, strict=True)
    return all(np.array_equal(mine[targets], source[sources]) for mine, source in both)


def test_blocks_are_read(agent: Agent, pair: tuple[End, End]) -> None:
    here, there = pair
    agent.may_land.set()
    assert here.pulled(there.transport.address, [3, 1], [0, 5]).bytes_read == 2 * LAYERS * WORDS * 8
    assert same(here, there.memory, [0, 5], [3, 1])
    assert agent.reads == 1


def given_up(agent: Agent, pair: tuple[End, End], released: threading.Event) -> PullResult:
    """Of a pull that is called off while the library reads."""
    here, there = pair
    results: list[PullResult] = []
    pull = here.transport.pull(
        there.transport.address, [3], [0], PLENTY_S, on_done=results.append, on_released=released.set
    )
    assert agent.began.wait(PLENTY_S)
    pull.cancel()
    result = finished(pull.wait(PLENTY_S))
    assert results == [result]
    return result


def test_blocks_of_a_read_that_was_given_up_are_kept_until_nothing_can_land_there(
    agent: Agent, pair: tuple[End, End]
) -> None:
    here, there = pair
    released = threading.Event()
    result = given_up(agent, pair, released)
    assert (result.ok, result.quarantined) == (False, True)
    assert not released.wait(0.05)
    agent.may_land.set()
    assert released.wait(PLENTY_S)
    assert same(here, there.memory, [0], [3]), "and bytes have landed"
    assert agent.met == 1
    for thread in threading.enumerate():
        if thread.name == "kv-late":
            thread.join(PLENTY_S)
            assert not thread.is_alive(), "nobody looks on"


def test_source_in_another_pid_namespace_is_not_read(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UCX would take plain TCP, where a puller that dies can take the source along."""
    here, _ = end(tmp_path, 0)
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[1]")
    there, _ = end(tmp_path, 100_000)
    assert here.pulled(there.transport.address, [3], [0]).ok
    assert same(here, there.memory, [0], [3])
    assert agent.reads == 0
    for each in (here, there):
        each.transport.close()


def test_source_that_nixl_does_not_reach_is_asked_for_its_bytes(agent: Agent, pair: tuple[End, End]) -> None:
    here, there = pair
    agent.reaches = False
    for _ in range(2):
        assert here.pulled(there.transport.address, [3], [0]).ok
    assert same(here, there.memory, [0], [3])


def test_peer_that_breaks_is_parted_from_and_met_anew(agent: Agent, pair: tuple[End, End]) -> None:
    here, there = pair
    agent.may_land.set()
    agent.breaks = True
    assert "the peer is gone" in here.pulled(there.transport.address, [3], [0]).reason
    assert (agent.met, agent.handles) == (0, 0)
    agent.breaks = False
    assert here.pulled(there.transport.address, [3], [0]).ok
    assert (agent.met, agent.handles) == (1, 0)
    assert same(here, there.memory, [0], [3])


def test_peer_that_is_gone_is_parted_from_once_nothing_of_it_can_land_any_more(
    agent: Agent, pair: tuple[End, End]
) -> None:
    here, there = pair
    released = threading.Event()
    given_up(agent, pair, released)
    here.transport.forget(there.transport.address)
    here.transport.forget("no address")
    assert agent.met == 1
    agent.may_land.set()
    assert released.wait(PLENTY_S)
    assert (agent.met, agent.handles) == (0, 0)


def test_no_nixl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl_cu13", None)
    with pytest.raises(TransportError, match=r"pip install nixl-cu13==1\.5\.1"):
        NixlReader(memory(0))


# -- the library itself, over host memory


def serve(pipe: Connection, folder: Path) -> None:
    there, _ = end(folder, 100_000)
    pipe.send(there.transport.address)
    pipe.recv()
    there.transport.close()


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
            process.join(PLENTY_S)

        yield ours.recv(), kill
    finally:
        process.kill()
        process.join(PLENTY_S)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, and in processes that this one starts."""
    monkeypatch.syspath_prepend(str(LIBRARY))


@needs_nixl
@pytest.mark.usefixtures("library")
def test_library_reads_another_process_and_outlives_it(tmp_path: Path) -> None:
    (here, reader), theirs = end(tmp_path, 0), memory(100_000)
    order = np.random.default_rng(0)
    with source(tmp_path) as (one, kill), source(tmp_path) as (other, _):
        for address in (one, other, one):
            targets, sources = order.permutation(BLOCKS).tolist(), order.permutation(BLOCKS).tolist()
            assert here.pulled(address, sources, targets).reason == ""
            assert same(here, theirs, targets, sources)
        assert len(reader._peers) == 2
        kill()
        dead = here.transport.pull(one, [1], [1], PLENTY_S, on_done=lambda _: None, on_released=lambda: None)
        assert not finished(dead.wait(PLENTY_S)).ok
        here.transport.forget(one)
        assert len(reader._peers) == 1
        assert here.pulled(other, [2], [2]).ok
        assert same(here, theirs, [2], [2])
    here.transport.close()


@needs_nixl
@pytest.mark.usefixtures("library")
def test_library_forgets_one_peer_after_the_other_and_survives_the_death_of_each_while_it_is_read(
    tmp_path: Path,
) -> None:
    """What stays with the dead would be more with each of them."""
    (here, reader), theirs = end(tmp_path, 0), memory(100_000)
    with source(tmp_path) as (stays, _):
        for _ in range(3):
            with source(tmp_path) as (dies, kill):
                assert here.pulled(dies, [1], [1]).ok
                threading.Timer(0.02, kill).start()
                ended = [here.pulled(dies, list(range(BLOCKS)), list(range(BLOCKS)))]
                while ended[-1].ok:
                    ended.append(here.pulled(dies, list(range(BLOCKS)), list(range(BLOCKS))))
                assert not ended[-1].quarantined
                here.transport.forget(dies)
            assert here.pulled(stays, [2, 3], [2, 3]).ok
            assert same(here, theirs, [2, 3], [2, 3])
            assert len(reader._peers) == 1
    here.transport.close()
