from __future__ import annotations

from typing import Any

import pytest

from llumnix.transport.choose import Address, Choice, Way, choose, shares_gpu
from llumnix.transport.port import PoolShape, TransportError

UNIX = Way("unix", "/run/kv.sock")
CUDA = Way("cuda", "/run/kv.sock")
LOOPBACK = Way("tcp", "127.0.0.1:4242")
NETWORK = Way("tcp", "10.0.0.7:4242")
NAMED = Way("tcp", "node-7:4242")
SOCKETS = ("unix", "tcp")

ELSEWHERE = "unix: the source is on another host"
LOOPBACK_ELSEWHERE = "tcp: the source listens on its loopback only, and is on another host"
NOT_SPOKEN = "unix: this end does not speak it"


@pytest.mark.parametrize(
    ("offered", "host", "able", "ways", "passed_over"),
    [
        pytest.param([UNIX, LOOPBACK], "a", SOCKETS, [UNIX, LOOPBACK], [], id="one host: unix, then tcp"),
        pytest.param([LOOPBACK, UNIX], "a", SOCKETS, [UNIX, LOOPBACK], [], id="the order of the offer is no matter"),
        pytest.param([LOOPBACK], "a", SOCKETS, [LOOPBACK], [], id="one host, no unix socket"),
        pytest.param([UNIX, NETWORK], "b", SOCKETS, [NETWORK], [ELSEWHERE], id="two hosts: tcp"),
        pytest.param([NAMED], "b", SOCKETS, [NAMED], [], id="a name is left to the connection"),
        pytest.param(
            [UNIX, LOOPBACK], "b", SOCKETS, [], [ELSEWHERE, LOOPBACK_ELSEWHERE], id="two hosts, loopback only"
        ),
        pytest.param([Way("tcp", "[::1]:1")], "b", SOCKETS, [], [LOOPBACK_ELSEWHERE], id="loopback of IPv6"),
        pytest.param([Way("tcp", "localhost:1")], "b", SOCKETS, [], [LOOPBACK_ELSEWHERE], id="loopback by name"),
        pytest.param([UNIX, LOOPBACK], "a", ("tcp",), [LOOPBACK], [NOT_SPOKEN], id="only the source has unix sockets"),
        pytest.param(
            [Way("pigeon", "coop")], "a", SOCKETS, [], ["pigeon: this end does not speak it"], id="unheard of"
        ),
        pytest.param([UNIX], "a", (), [], [NOT_SPOKEN], id="nothing in common"),
        pytest.param([UNIX, CUDA], "a", (*SOCKETS, "cuda"), [CUDA, UNIX], [], id="two GPUs of one host: the device"),
        pytest.param([CUDA], "b", ("cuda",), [], ["cuda: the source is on another host"], id="GPUs of two hosts"),
    ],
)
def test_choice(offered: Any, host: Any, able: Any, ways: Any, passed_over: Any) -> None:
    source = Address(incarnation="i", host="a", ways=tuple(offered))
    assert choose(source, host, able) == Choice(tuple(ways), tuple(passed_over))


@pytest.mark.parametrize(
    ("host", "gpu", "shared"),
    [("a", "GPU-1", True), ("a", "GPU-2", False), ("b", "GPU-1", False), ("a", "", False), ("a", "gpu-1", False)],
)
def test_a_gpu_is_one_only_where_both_say_its_whole_name_on_one_host(host: str, gpu: str, shared: bool) -> None:
    assert shares_gpu(Address(incarnation="i", host="a", ways=(), gpu="GPU-1"), host, gpu) is shared
    assert not shares_gpu(Address(incarnation="i", host="a", ways=()), host, gpu)


@pytest.mark.parametrize("ways", [(UNIX,), (UNIX, NETWORK), (Way("tcp", "[::1]:80"), UNIX), ()])
def test_an_address_reads_as_it_was_written(ways: Any) -> None:
    for gpu in ("", "GPU-4a"):
        address = Address(incarnation="0f", host="boot-id", ways=ways, gpu=gpu)
        assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "@host", "id@", "id@h,", "id@h,unix", "id@h,unix:", "id@h,:x", "id@h,tcp:host", "id@h,tcp:h:p"),
        *("id@h,tcp:h:65536", "id@h,tcp::5"),
        *("id@h,nixl:host", "id@h,nixl:h:p", "id@h@", "id@@GPU-1", "id@h@GPU-1@GPU-2"),
    ],
)
def test_what_is_not_an_address_is_told_apart(text: str) -> None:
    with pytest.raises(TransportError, match="is not the address of a transport"):
        Address.parse(text)


def test_host_and_port_of_an_ipv6_way() -> None:
    assert Way("tcp", "[fe80::1]:4242").host_and_port == ("fe80::1", 4242)


def shape(fingerprint: str = "m", num_blocks: int = 8, chunk_bytes: tuple[int, ...] = (16, 32)) -> PoolShape:
    return PoolShape(fingerprint=fingerprint, num_blocks=num_blocks, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (shape(num_blocks=9), None),
        (shape(fingerprint="n"), "different things: 'm' here, 'n' there"),
        (shape(chunk_bytes=(16,)), "2 regions here, 1 there"),
        (shape(chunk_bytes=(16, 64)), "chunks of region 1 have 32 bytes here, 64 there"),
    ],
)
def test_shapes_that_do_not_match_say_where(other: Any, complaint: str | None) -> None:
    mismatch = shape().mismatch(other)
    assert mismatch is None if complaint is None else complaint in (mismatch or "")
