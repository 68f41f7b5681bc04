"""Pools: which bytes a batch names, and when the kernel may have them as they lie."""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transport_ends import finished

from llumnix.transport import staging
from llumnix.transport.connection import Connection
from llumnix.transport.memory import PIECES_AT_ONCE, MemoryPool
from llumnix.transport.pieces import receive_pieces, send_pieces
from llumnix.transport.port import TransportError
from llumnix.transport.sockets import SocketOptions, SocketTransport
from llumnix.transport.staging import MAX_STREAMS, StagedPool, pool_of

FOREVER = float("inf")


def sizes(pool: MemoryPool, blocks: Any) -> list[int]:
    return [int(length) for batch in pool.reading(blocks, FOREVER) for length in batch[:, 1]]


def test_blocks_that_touch_become_one_piece() -> None:
    pool = MemoryPool.of_arrays([np.zeros((8, 100), np.uint8)], fingerprint="")
    assert sizes(pool, [0, 1, 2, 5, 7, 6]) == [300, 100, 100, 100]


def test_blocks_with_gaps_between_them_stay_pieces() -> None:
    every_other_layer = np.zeros((8, 2, 100), np.uint8)[:, 0]
    pool = MemoryPool.of_arrays([every_other_layer], fingerprint="")
    assert sizes(pool, [0, 1, 2]) == [100, 100, 100]


def test_a_huge_request_comes_in_bounded_batches() -> None:
    pool = MemoryPool.of_arrays([np.zeros((100, 8), np.uint8)] * 400, fingerprint="")
    batches = list(pool.reading(range(0, 100, 2), FOREVER))
    assert len(batches) == 2
    assert max(map(len, batches)) <= PIECES_AT_ONCE
    assert sum(int(batch[:, 1].sum()) for batch in batches) == 400 * 50 * 8


@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["numpy", "torch"])
def test_a_block_that_is_not_contiguous_is_refused(make: Any) -> None:
    scattered = make((4, 8, 16)).swapaxes(0, 1)
    with pytest.raises(TransportError, match="not contiguous"):
        MemoryPool.of_arrays([scattered], fingerprint="")


def test_regions_of_different_length_are_refused() -> None:
    with pytest.raises(TransportError, match=r"one number of blocks, not \[4, 5\]"):
        MemoryPool.of_arrays([np.zeros((4, 1)), np.zeros((5, 1))], fingerprint="")
    with pytest.raises(TransportError, match="one number of blocks"):
        StagedPool([torch.zeros((4, 1)), torch.zeros((5, 1))], fingerprint="")


def test_tensors_are_staged_only_where_they_must_be() -> None:
    assert isinstance(pool_of([torch.zeros(8, 4, 2)], fingerprint=""), MemoryPool)
    assert isinstance(pool_of([torch.zeros(4, 8, 2).transpose(0, 1)], fingerprint=""), StagedPool)


def test_a_plain_and_a_staged_pool_exchange_blocks_of_different_layout() -> None:
    plain = torch.arange(6 * 4 * 10, dtype=torch.int32).view(6, 4, 10)
    scattered = torch.zeros(4, 6, 10, dtype=torch.int32).transpose(0, 1)
    ends = [
        SocketTransport(pool_of([region], fingerprint="x"), b"s" * 16, SocketOptions()) for region in (plain, scattered)
    ]
    results: list[Any] = []
    pull = ends[1].pull(ends[0].address, [1, 3], [5, 0], 5.0, on_done=results.append, on_released=results.clear)
    assert finished(pull.wait(5.0)).ok
    assert torch.equal(scattered[[5, 0]], plain[[1, 3]])
    pull = ends[0].pull(ends[1].address, [5], [2], 5.0, on_done=results.append, on_released=results.clear)
    assert finished(pull.wait(5.0)).ok
    assert torch.equal(plain[2], plain[1])
    for end in ends:
        end.close()
    assert [result.reason for result in results] == ["", ""]


def test_large_chunks_are_copied_as_they_lie_and_meet_gathered_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a layout with blocks outermost has them; such a pool takes nothing of its device for buffers."""
    monkeypatch.setattr(staging, "DIRECT_BYTES", 64)
    whole = torch.arange(6 * 4 * 10, dtype=torch.int32).view(6, 4, 10)
    scattered = torch.zeros(4, 6, 10, dtype=torch.int32).transpose(0, 1)
    pools = [StagedPool([region], fingerprint="x", staging_bytes=400) for region in (whole, scattered)]
    assert [pool.bytes_on_device for pool in pools] == [0, 8 * 448]
    ends = [SocketTransport(pool, b"s" * 16, SocketOptions()) for pool in pools]
    for here, there, sources, targets in ((1, 0, [1, 3, 4], [5, 0, 2]), (0, 1, [5, 2], [2, 0])):
        pull = ends[here].pull(
            ends[there].address, sources, targets, 5.0, on_done=lambda _: None, on_released=lambda: None
        )
        assert finished(pull.wait(5.0)).ok
        regions = whole, scattered
        assert torch.equal(regions[here][targets], regions[there][sources])
    for end in ends:
        end.close()


def test_tensors_made_in_inference_mode_can_be_written_from_another_thread() -> None:
    """vLLM makes its KV cache so; torch then refuses writes in place outside of that mode."""
    with torch.inference_mode():
        tensor = torch.zeros(2, 4, 8).transpose(0, 1)

    def write() -> None:
        for batch in StagedPool([tensor], fingerprint="").writing([3], FOREVER):
            staged = int(batch[0, 0])
            np.frombuffer((ctypes.c_char * 64).from_address(staged), np.float32)[:] = 5

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tensor[3] == 5).all()
    assert (tensor[:3] == 0).all()


def test_whoever_finds_no_staging_buffer_gives_up_in_time() -> None:
    pool = StagedPool([torch.zeros(4, 8)], fingerprint="")
    held = [pool.writing([0], FOREVER) for _ in range(MAX_STREAMS)]
    for stream in held:
        next(stream)
    with pytest.raises(TimeoutError, match="no staging buffer"):
        next(pool.writing([1], time.monotonic() + 0.01))
    assert len(next(pool.reading([1], time.monotonic() + 0.01))) == 1  # the other direction has its own
    held.pop().close()
    assert len(next(pool.writing([1], time.monotonic() + 0.01))) == 1


def staged_ends() -> list[SocketTransport]:
    """Source and target; the source's blocks take four turns of its buffers."""
    tensors = [torch.zeros(4, 8, 2).transpose(0, 1) for _ in range(2)]
    return [
        SocketTransport(StagedPool([tensor], fingerprint="x", staging_bytes=64), b"s" * 16, SocketOptions())
        for tensor in tensors
    ]


@pytest.mark.parametrize(
    ("torch_function", "fails_at", "reason"),
    [
        ("index_select", 1, "the source refused: torch cannot copy blocks: out of memory"),
        ("index_select", 3, "the peer closed the connection"),
        ("Tensor.index_copy_", 1, "torch cannot copy blocks: out of memory"),
    ],
)
def test_an_error_of_torch_ends_the_pull_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, torch_function: str, fails_at: int, reason: str
) -> None:
    source, target = staged_ends()
    owner, name = (torch.Tensor, "index_copy_") if "." in torch_function else (torch, torch_function)
    works = getattr(owner, name)
    calls: list[str] = []
    died: list[Any] = []

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == fails_at:
            raise torch.OutOfMemoryError("out of memory\nTried to allocate")
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, fails_once)
    monkeypatch.setattr(threading, "excepthook", died.append)
    results: list[Any] = []
    for _ in range(2):
        pull = target.pull(source.address, range(8), range(8), 5.0, on_done=results.append, on_released=results.clear)
        assert pull.wait(5.0)
    for end in (source, target):
        end.close()
    assert [result.ok for result in results] == [False, True]
    assert reason in results[0].reason
    assert died == []


def test_no_pull_allocates_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = staged_ends()
    made = []
    for name in ("empty", "zeros", "empty_like"):
        monkeypatch.setattr(torch, name, lambda *_, **__: made.append("allocated"))
    results: list[Any] = []
    pull = target.pull(source.address, range(8), range(8), 5.0, on_done=results.append, on_released=results.clear)
    assert finished(pull.wait(5.0)).ok
    for end in (source, target):
        end.close()
    assert made == []


def test_making_a_pool_changes_no_byte() -> None:
    tensor = torch.arange(64, dtype=torch.float32).view(4, 8, 2).transpose(0, 1)
    before = tensor.clone()
    StagedPool([tensor, tensor], fingerprint="")
    assert torch.equal(tensor, before)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (SocketOptions(tcp_host=None), "needs a folder"),
        (SocketOptions(tcp_host="0.0.0.0"), "needs an advertised host"),
        (SocketOptions(tcp_host="203.0.113.1"), "cannot listen on 203.0.113.1"),
    ],
)
def test_a_transport_that_cannot_listen_says_why(options: Any, complaint: str | None) -> None:
    pool = MemoryPool.of_arrays([np.zeros((4, 8))], fingerprint="")
    with pytest.raises(TransportError, match=complaint):
        SocketTransport(pool, b"s" * 16, options)


@pytest.mark.parametrize(
    ("name", "complaint"), [("x" * 100, "longer than 107"), ("a,b", "comma"), ("none", "No such file")]
)
def test_a_folder_that_cannot_hold_the_socket_says_why(tmp_path: Path, name: str, complaint: str | None) -> None:
    folder = tmp_path / name
    if name != "none":
        folder.mkdir()
    pool = MemoryPool.of_arrays([np.zeros((4, 8))], fingerprint="")
    with pytest.raises(TransportError, match=complaint):
        SocketTransport(pool, b"s" * 16, SocketOptions(folder=folder))


def test_tcp_takes_over_when_the_unix_socket_cannot_be_reached(tmp_path: Path) -> None:
    memory = np.arange(32, dtype=np.uint8).reshape(4, 8)
    pool = MemoryPool.of_arrays([memory], fingerprint="")
    end = SocketTransport(pool, b"s" * 16, SocketOptions(folder=tmp_path))
    path = next(tmp_path.iterdir())
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    results: list[Any] = []
    pull = end.pull(end.address, [0], [3], 5.0, on_done=results.append, on_released=results.clear)
    assert finished(pull.wait(5.0)).ok
    assert (memory[3] == memory[0]).all()
    end.close()


def test_pieces_that_the_kernel_took_only_in_part_are_sent_on() -> None:
    """A send time limit that passes half-way is how a call comes back early; the next one goes on in mid-piece."""
    sent = np.random.default_rng(0).integers(0, 256, (40, 100_003), dtype=np.uint8)
    received = np.zeros_like(sent)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 20_000))
    batches = [
        next(MemoryPool.of_arrays([array], fingerprint="").reading(range(0, 40, 2), FOREVER))
        for array in (sent, received)
    ]
    reader = threading.Thread(target=receive_pieces, args=(theirs, batches[1], lambda: None))
    calls: list[Any] = []

    def before_call() -> None:
        calls.append(len(calls))
        if len(calls) == 2:  # the first has filled the socket's buffer and come back
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 0))
            reader.start()

    send_pieces(ours, batches[0], before_call)
    reader.join()
    assert len(calls) > 1
    np.testing.assert_array_equal(received[::2], sent[::2])
    assert not received[1::2].any()
    ours.close()
    theirs.close()


def test_how_much_is_on_its_way_over_tcp_is_left_to_the_kernel() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
    ):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            by_the_kernel = sock.getsockopt(socket.SOL_SOCKET, option)
            Connection(sock)
            assert sock.getsockopt(socket.SOL_SOCKET, option) == by_the_kernel
