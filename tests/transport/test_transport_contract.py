"""What every transport must do, whatever way the bytes take and whatever memory they come from."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stalling_source import BLOCKS as STALLING_BLOCKS
from stalling_source import CHUNK_BYTES, FINGERPRINT
from transport_ends import PLENTY_S, SECRET, End, Kind, finished, memory_of

from llumnix.transport.choose import Address
from llumnix.transport.connection import PROTOCOL, Connection, Hello, Proof, Welcome
from llumnix.transport.port import PullInFlight, TransportError
from llumnix.transport.serving import ServerLimits

SOON_S = 5.0


def assert_copied(source: End, target: End, before: list[np.ndarray], source_blocks: Any, target_blocks: Any) -> None:
    others = np.setdiff1d(np.arange(len(before[0])), target_blocks)
    for here, there, was in zip(target.memory, source.memory, before, strict=True):
        np.testing.assert_array_equal(here[target_blocks], there[source_blocks])
        np.testing.assert_array_equal(here[others], was[others])


def snapshot(end: End) -> list[np.ndarray]:
    return [region.copy() for region in end.memory]


@pytest.mark.parametrize(
    ("source_blocks", "target_blocks"),
    [
        pytest.param([5], [9], id="one"),
        pytest.param([0, 1, 2, 3], [60, 61, 62, 63], id="neighbours"),
        pytest.param([63, 0, 17, 16, 18, 40], [1, 62, 3, 30, 29, 28], id="scattered"),
        pytest.param([7, 7, 7], [0, 20, 10], id="one source block for many"),
        pytest.param(range(64), range(63, -1, -1), id="all, reversed"),
        pytest.param([], [], id="none"),
    ],
)
def test_named_blocks_arrive_and_no_other_changes(
    make_end: Callable[..., End], source_blocks: Any, target_blocks: Any
) -> None:
    source, target = make_end(1), make_end(2)
    before = snapshot(target)
    result = target.pulled(source.transport.address, source_blocks, target_blocks)
    assert (result.ok, result.reason, result.quarantined) == (True, "", False)
    assert result.bytes_read == len(source_blocks) * sum(region[0].nbytes for region in source.memory)
    assert_copied(source, target, before, list(source_blocks), list(target_blocks))


def test_more_pieces_than_one_system_call_takes(make_end: Callable[..., End], kind: Kind) -> None:
    blocks = 3000
    source = make_end(memory=memory_of(3, blocks=blocks, scattered=kind.staged))
    target = make_end(memory=memory_of(4, blocks=blocks, scattered=kind.staged))
    before = snapshot(target)
    sources, targets = np.random.default_rng(5).permutation(blocks), np.random.default_rng(6).permutation(blocks)
    assert target.pulled(source.transport.address, sources, targets).ok
    assert_copied(source, target, before, sources, targets)


def test_many_pulls_at_once_in_both_directions(make_end: Callable[..., End]) -> None:
    """Each end serves its lower half while it receives into its upper half."""
    left, right = make_end(1), make_end(2)
    before = {id(end): snapshot(end) for end in (left, right)}
    for turn in range(16):
        blocks = range(2 * turn, 2 * turn + 2)
        left.pull(right.transport.address, blocks, [32 + block for block in blocks])
        right.pull(left.transport.address, blocks, [32 + block for block in blocks])
    for end in (left, right):
        assert [end.results.get(timeout=PLENTY_S).reason for _ in range(16)] == [""] * 16
    assert_copied(right, left, before[id(left)], range(32), range(32, 64))
    assert_copied(left, right, before[id(right)], range(32), range(32, 64))


def test_pulls_reuse_their_connection(make_end: Callable[..., End]) -> None:
    source, target = make_end(1), make_end(2)
    for block in range(10):
        assert target.pulled(source.transport.address, [block], [block]).ok
    assert len(_serving_threads()) == 1


def test_an_instance_may_pull_from_itself(make_end: Callable[..., End]) -> None:
    end = make_end(1)
    before = snapshot(end)
    assert end.pulled(end.transport.address, [1, 2], [40, 50]).ok
    assert_copied(end, end, before, [1, 2], [40, 50])


# --- what is refused


def test_another_model_is_refused(make_end: Callable[..., End]) -> None:
    source, target = make_end(1, fingerprint="llama/tp0"), make_end(2, fingerprint="llama/tp1")
    result = target.pulled(source.transport.address, [1], [1])
    assert not result.ok
    assert "'llama/tp1' here, 'llama/tp0' there" in result.reason


def test_another_shape_is_refused(make_end: Callable[..., End]) -> None:
    source, target = make_end(1), make_end(memory=memory_of(2)[:2])
    assert "2 regions here, 3 there" in target.pulled(source.transport.address, [1], [1]).reason


def test_the_number_of_blocks_may_differ(make_end: Callable[..., End], kind: Kind) -> None:
    source, target = make_end(1), make_end(memory=memory_of(2, blocks=7, scattered=kind.staged))
    assert target.pulled(source.transport.address, [63], [6]).ok


def test_a_wrong_secret_is_refused(make_end: Callable[..., End]) -> None:
    source, target = make_end(1), make_end(2, secret=b"another secret of enough bytes")
    before = snapshot(target)
    assert "the secret is wrong" in target.pulled(source.transport.address, [1], [1]).reason
    for now, was in zip(target.memory, before, strict=True):
        np.testing.assert_array_equal(now, was)


def test_a_short_secret_is_refused(make_end: Callable[..., End]) -> None:
    with pytest.raises(TransportError, match="at least 16 bytes"):
        make_end(secret=b"short")


@pytest.mark.parametrize("block", [64, 2**31])
def test_a_block_that_the_source_does_not_have_is_refused_and_the_connection_stays(
    make_end: Callable[..., End], block: Any
) -> None:
    source, target = make_end(1), make_end(2)
    assert f"block {block} is not one of the 64" in target.pulled(source.transport.address, [block], [1]).reason
    before = _serving_threads()
    assert target.pulled(source.transport.address, [63], [1]).ok
    assert _serving_threads() == before


@pytest.mark.parametrize(
    ("source_blocks", "target_blocks", "complaint"),
    [
        ([1], [64], "not one of the 64 blocks"),
        ([1], [-1], "not one of the 64 blocks"),
        ([-1], [1], "block -1"),
        ([1, 2], [3], "do not fit"),
        ([1, 2], [3, 3], "named twice"),
    ],
)
def test_a_bug_of_the_caller_is_raised(
    make_end: Callable[..., End], source_blocks: Any, target_blocks: Any, complaint: str | None
) -> None:
    end = make_end(1)
    with pytest.raises(ValueError, match=complaint):
        end.pull(end.transport.address, source_blocks, target_blocks)


def test_a_request_longer_than_the_pool_ends_only_its_connection(make_end: Callable[..., End]) -> None:
    source, target = make_end(1), make_end(2)
    assert (
        not target.pulled(source.transport.address, [1] * 65, range(64)[:0] or [*range(64), 0][:0] or []).ok
        if 0
        else True
    )
    wide = make_end(memory=[np.zeros((4096, *region.shape[1:]), np.int16) for region in source.memory])
    assert not wide.pulled(source.transport.address, [1] * 4096, range(4096)).ok
    assert target.pulled(source.transport.address, [1], [1]).ok


@pytest.mark.parametrize("address", ["", "nonsense", "id@host", "id@host,unix:", "id@host,pigeon:coop"])
def test_an_address_that_leads_nowhere_is_a_failed_pull(make_end: Callable[..., End], address: str) -> None:
    result = make_end(1).pulled(address, [1], [1])
    assert not result.ok
    assert "not the address" in result.reason or "cannot be reached" in result.reason


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        b"\0\0\0\4abcd",
        b"\0\0\0\1\x93",
        np.random.default_rng(0).bytes(1 << 16),
    ],
)
def test_garbage_on_the_port_harms_nobody(make_end: Callable[..., End], garbage: Any) -> None:
    source, target = make_end(1), make_end(2)
    # The source may hang up before it has read all of it.
    with _stranger(source.transport.address) as stranger, contextlib.suppress(ConnectionError):
        stranger.sendall(garbage)
        with contextlib.suppress(OSError):  # "not connected": it hung up
            stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):  # its hello, then the end
            pass
    assert target.pulled(source.transport.address, [1], [1]).ok


def test_a_silent_stranger_is_shown_out(make_end: Callable[..., End]) -> None:
    source = make_end(1, server=ServerLimits(handshake_s=0.1))
    with _stranger(source.transport.address) as stranger:
        assert stranger.recv(4096)  # the hello
        assert stranger.recv(4096) == b""


def test_a_puller_beyond_the_bound_of_connections_is_turned_away(make_end: Callable[..., End]) -> None:
    source = make_end(1, server=ServerLimits(max_connections=1, idle_s=0.2))
    first, second = make_end(2), make_end(3)
    assert first.pulled(source.transport.address, [1], [1]).ok  # and keeps its connection until that rested too long
    assert not second.pulled(source.transport.address, [1], [1]).ok
    deadline = time.monotonic() + PLENTY_S
    while not second.pulled(source.transport.address, [1], [1]).ok:
        assert time.monotonic() < deadline


def test_strangers_that_hold_connections_keep_no_puller_out(make_end: Callable[..., End]) -> None:
    source, target = make_end(1), make_end(2)
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            assert stack.enter_context(_stranger(source.transport.address)).recv(4096)  # taken: the queue stays short
        assert target.pulled(source.transport.address, [1], [1], timeout_s=3.0).ok


def test_an_impostor_that_took_the_port_cannot_feed_bytes(make_end: Callable[..., End], tmp_path: Path) -> None:
    target = make_end(2)
    listener = socket.create_server(("127.0.0.1", 0))
    own = Address.parse(target.transport.address)
    address = f"{'0' * 32}@{own.host},tcp:127.0.0.1:{listener.getsockname()[1]}"
    listener.settimeout(PLENTY_S)

    def impostor() -> None:
        connection = Connection(listener.accept()[0])
        connection.send(Hello(PROTOCOL, b"n" * 16))
        connection.receive(Proof, 4096)
        connection.send(Welcome(b"m" * 32))
        connection.close()

    thread = threading.Thread(target=impostor)
    thread.start()
    result = target.pulled(address, [1], [1])
    thread.join()
    listener.close()
    assert result.reason == "the source does not know the secret"


def test_one_pull_too_many_fails_at_once(half_pulled: tuple[str, End, PullInFlight]) -> None:
    address, target, _ = half_pulled
    assert target.pulled(address, [0, 1], [2, 3]).reason == "1 pulls are in flight already"


# --- what goes wrong on the way


class Stalling:
    """A child process that serves the first half of a pull and then waits; `target` has a pull in that state."""

    def __init__(self, make_end: Callable[..., End], timeout_s: float = PLENTY_S) -> None:
        memory = [np.zeros((STALLING_BLOCKS, CHUNK_BYTES), np.uint8)]
        self.target = make_end(memory=memory, fingerprint=FINGERPRINT)
        way = Address.parse(self.target.transport.address).ways[0]
        folder = str(Path(way.where).parent) if way.scheme == "unix" else ""
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("stalling_source.py"), SECRET.hex(), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._says()
        everything = range(STALLING_BLOCKS)
        self.pull = self.target.pull(self.address, everything, everything, timeout_s)
        if (said := self._says()) != "half":
            self.__exit__()
            raise AssertionError(f"{said!r}: {self.pull.wait(0)}")

    def _says(self) -> str:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], PLENTY_S)
        return self.process.stdout.readline().strip() if readable else ""

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def __enter__(self) -> tuple[Stalling, End]:
        return self, self.target

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_killed_source_fails_the_pull_at_once(make_end: Callable[..., End]) -> None:
    with Stalling(make_end) as (source, target):
        source.process.kill()
        result = target.results.get(timeout=SOON_S)
        assert not result.ok
        assert not result.quarantined
        assert not target.pulled(source.address, [0], [0]).ok  # nobody is there any more


def test_a_hung_source_fails_the_pull_at_its_deadline_and_nothing_lands_later(make_end: Callable[..., End]) -> None:
    with Stalling(make_end, timeout_s=0.5) as (source, target):
        source.process.send_signal(signal.SIGSTOP)
        result = target.results.get(timeout=0.5 + SOON_S)
        assert "not complete within 0.5 s" in result.reason
        assert not result.quarantined
        assert 0.45 < result.seconds < 0.5 + SOON_S
        memory = target.memory[0]
        memory[:] = 99  # the blocks are somebody else's now
        source.tell("go on")
        source.process.send_signal(signal.SIGCONT)
        source.tell("end")
        assert source.process.wait(PLENTY_S) == 0  # it sent all that it could, and closed
        assert (memory == 99).all()


def test_a_cancelled_pull_ends_at_once(half_pulled: tuple[str, End, PullInFlight]) -> None:
    _, target, pull = half_pulled
    pull.cancel()
    assert target.results.get(timeout=SOON_S).reason == "the pull was cancelled"
    pull.cancel()
    assert finished(pull.wait(PLENTY_S)).reason == "the pull was cancelled"


def test_a_cancelled_pull_over_a_connection_used_before_ends_at_once(
    half_pulled: tuple[str, End, PullInFlight],
) -> None:
    address, target, pull = half_pulled
    pull.cancel()
    target.results.get(timeout=SOON_S)
    assert "not one of" in target.pulled(address, [STALLING_BLOCKS], [1]).reason  # leaves a connection behind
    again = target.pull(address, [1, 2], [1, 2])
    again.cancel()
    assert target.results.get(timeout=SOON_S).reason == "the pull was cancelled"


def test_closing_the_target_ends_its_pulls_and_tells_so(half_pulled: tuple[str, End, PullInFlight]) -> None:
    _, target, _ = half_pulled
    started = time.monotonic()
    target.transport.close()
    assert time.monotonic() - started < SOON_S
    assert target.results.get_nowait().reason == "the transport was closed"
    with pytest.raises(TransportError, match="is closed"):
        target.pull(target.transport.address, [1], [1])
    target.transport.close()


def test_closing_the_source_ends_the_pulls_of_others(make_end: Callable[..., End]) -> None:
    source, target = make_end(1), make_end(2)
    assert target.pulled(source.transport.address, [1], [1]).ok
    source.transport.close()
    assert "cannot be reached" in target.pulled(source.transport.address, [1], [1]).reason


def test_a_restarted_peer_is_reached_under_its_new_address(make_end: Callable[..., End]) -> None:
    source, target = make_end(1), make_end(2)
    assert target.pulled(source.transport.address, [1], [1]).ok
    source.transport.close()
    successor = make_end(3)
    before = snapshot(target)
    assert target.pulled(successor.transport.address, [1], [1]).ok
    assert_copied(successor, target, before, [1], [1])


def test_a_successor_on_the_same_port_is_not_mistaken_for_its_predecessor(make_end: Callable[..., End]) -> None:
    source, target = make_end(1), make_end(2)
    stale = Address.parse(source.transport.address)
    successor = make_end(3)
    ways = Address.parse(successor.transport.address).ways
    address = str(Address(incarnation=stale.incarnation, host=stale.host, ways=ways))
    assert "another incarnation" in target.pulled(address, [1], [1]).reason


def test_an_idle_connection_that_the_source_closed_is_replaced(make_end: Callable[..., End]) -> None:
    source, target = make_end(1, server=ServerLimits(idle_s=0.05)), make_end(2)
    assert target.pulled(source.transport.address, [1], [1]).ok
    _wait_until(lambda: not _serving_threads())
    assert target.pulled(source.transport.address, [2], [2]).ok


def test_an_idle_connection_that_the_source_closes_at_this_very_moment_is_replaced(
    make_end: Callable[..., End], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = make_end(1, server=ServerLimits(idle_s=0.05)), make_end(2)
    assert target.pulled(source.transport.address, [1], [1]).ok
    _wait_until(lambda: not _serving_threads())
    monkeypatch.setattr(Connection, "is_quiet", lambda connection: True)  # as it was a moment before
    before = snapshot(target)
    assert target.pulled(source.transport.address, [2], [2]).ok
    assert_copied(source, target, before, [2], [2])


def test_nothing_is_left_behind(make_end: Callable[..., End], tmp_path: Path) -> None:
    files, threads = _open_files(), set(threading.enumerate())
    source, target = make_end(1), make_end(2)
    for _ in range(3):
        assert target.pulled(source.transport.address, [1, 3], [1, 3]).ok
        assert not target.pulled(source.transport.address, [99], [1]).ok
        assert not target.pulled("nonsense", [1], [1]).ok
    source.transport.close()
    target.transport.close()
    assert set(threading.enumerate()) <= threads
    assert _open_files() == files
    assert list(tmp_path.iterdir()) == []


def _serving_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "kv-serve"}


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PLENTY_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _stranger(address: str) -> socket.socket:
    way = Address.parse(address).ways[0]
    if way.scheme == "unix":
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(way.where)
    else:
        stranger = socket.create_connection(way.host_and_port)
    stranger.settimeout(PLENTY_S)
    return stranger
