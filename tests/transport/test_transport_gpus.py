"""Who reads whose GPU: within one by itself, between two where it was asked for, and only what was seen to be right."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from mapped_ends import BLOCKS, LAYERS, WORDS, Driver, MappedEnd, SentPool
from transport_ends import SECRET

from llumnix.transport import reading
from llumnix.transport.choose import Address
from llumnix.transport.mapped import MappedMemory
from llumnix.transport.port import TransportError
from llumnix.transport.sockets import SocketOptions, SocketTransport

Make = Callable[..., MappedEnd]

HERE, THERE = [4, 5, 0], [1, 2, 7]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_within_a_gpu_nothing_is_sent(make_mapped: Make, driver: Driver) -> None:
    here, there = make_mapped(), make_mapped()
    assert here.pull(there, THERE, HERE).ok
    assert here.has(there, THERE, HERE)
    assert driver.count("copies") == 2 * LAYERS


@pytest.mark.parametrize(
    ("here_on", "there_on"), [("GPU-1", "GPU-2"), ("GPU-1", ""), ("", "GPU-1"), ("", "")], ids=repr
)
def test_between_gpus_that_are_two_or_may_be_all_is_sent(
    make_mapped: Make, driver: Driver, caplog: pytest.LogCaptureFixture, here_on: str, there_on: str
) -> None:
    here, there = make_mapped(gpu=here_on, pool=SentPool), make_mapped(gpu=there_on, pool=SentPool)
    assert here.pull(there, THERE, HERE).ok
    assert here.has(there, THERE, HERE)
    assert (there.pool.sent, driver.count("opened"), told(caplog)) == ([THERE], 0, [])


def test_same_gpu_of_another_machine_is_another_one(make_mapped: Make, driver: Driver) -> None:
    here, there = make_mapped(tcp_host="127.0.0.1"), make_mapped(tcp_host="127.0.0.1", pool=SentPool)
    address = Address.parse(there.transport.address)
    elsewhere = str(Address(incarnation=address.incarnation, host="another", ways=address.ways, gpu=address.gpu))
    assert f"@another@{address.gpu}," in elsewhere
    pull = here.transport.pull(elsewhere, [1], [1], 5.0, on_done=lambda _: None, on_released=lambda: None)
    result = pull.wait(10.0)
    assert result is not None
    assert "on another host" in result.reason
    assert driver.count("opened") == 0


def test_gpu_that_nobody_can_tell_is_not_offered_unless_that_was_asked_for(driver: Driver, make_mapped: Make) -> None:
    with pytest.raises(TransportError, match=r"which GPU this is cannot be told, or it is divided \(MIG\)"):
        MappedMemory(make_mapped().views, driver, gpu="", between_gpus=False)
    assert "@" not in make_mapped(gpu="", named=True).transport.address.partition("@")[2]


@pytest.mark.parametrize("gpus", [("GPU-1", "GPU-2"), ("", "GPU-1"), ("", "")], ids=repr)
def test_between_gpus_the_first_pull_that_was_asked_for_comes_both_ways(
    make_mapped: Make, driver: Driver, gpus: tuple[str, str]
) -> None:
    here, there = (make_mapped(gpu=gpu, named=True, pool=SentPool) for gpu in gpus)
    result = here.pull(there, THERE, HERE)
    assert (result.ok, result.bytes_read) == (True, 3 * LAYERS * WORDS * 8)
    assert here.has(there, THERE, HERE)
    assert (there.pool.sent, driver.count("copies")) == ([THERE], 2 * LAYERS)
    assert here.pull(there, [3], [3]).ok
    assert here.has(there, [3], [3])
    assert (there.pool.sent, driver.count("copies")) == ([THERE], 3 * LAYERS), "it has shown what it can"
    here.transport.forget(there.transport.address)
    assert here.pull(there, [4], [1]).ok
    assert there.pool.sent == [THERE, [4]], "another one may come under this name"


def test_of_a_large_pull_some_blocks_are_compared_from_its_whole_length(
    make_mapped: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "TRIAL_BYTES", 3 * LAYERS * WORDS * 8 + 1)
    here, there = (make_mapped(gpu=gpu, named=True, pool=SentPool) for gpu in ("GPU-1", "GPU-2"))
    blocks = list(range(BLOCKS))
    assert here.pull(there, blocks, blocks[::-1]).ok
    assert here.has(there, blocks, blocks[::-1])
    assert there.pool.sent == [[0, 3, 7]]


def test_wrong_bytes_are_told_and_not_used(make_mapped: Make, driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    """As a machine does whose GPUs cannot read each other, and which says that they can."""
    here, there = (make_mapped(gpu=gpu, named=True, pool=SentPool) for gpu in ("GPU-1", "GPU-2"))

    def spoil() -> None:
        here.memory[1, HERE[-1], -1] += 1

    driver.copied = spoil
    for _ in range(2):
        result = here.pull(there, THERE, HERE)
        assert (result.ok, result.bytes_read) == (True, 3 * LAYERS * WORDS * 8)
        assert here.has(there, THERE, HERE)
    assert there.pool.sent == [THERE] * 3, "for the comparison, then in its stead, then always"
    assert driver.count("copies") == 2 * LAYERS
    (sentence,) = told(caplog)
    assert sentence.startswith(f"WRONG BYTES: blocks of {there.transport.address} that were read by cuda differ")


def test_copies_that_never_happen_are_told(
    make_mapped: Make, driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = (make_mapped(gpu=gpu, named=True, pool=SentPool) for gpu in ("GPU-1", "GPU-2"))
    monkeypatch.setattr(Driver, "copy", lambda *_, **__: None)
    assert here.pull(there, THERE, HERE).ok
    assert here.has(there, THERE, HERE)
    assert told(caplog)[0].startswith("WRONG BYTES")


def test_copies_of_what_is_there_already_prove_nothing(make_mapped: Make, driver: Driver) -> None:
    here, there = (make_mapped(gpu=gpu, named=True, pool=SentPool) for gpu in ("GPU-1", "GPU-2"))
    here.memory[:, 4] = there.memory[:, 1]
    for _ in range(2):
        assert here.pull(there, [1], [4]).ok
    assert there.pool.sent == [[1], [1]]
    assert here.pull(there, [], []).ok


def test_socket_that_fails_in_a_trial_says_nothing_of_the_other_way(
    make_mapped: Make, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = (make_mapped(gpu=gpu, named=True, pool=SentPool) for gpu in ("GPU-1", "GPU-2"))
    there.pool.is_broken = True
    assert "no memory left" in here.pull(there, THERE, HERE).reason
    there.pool.is_broken = False
    assert here.pull(there, THERE, HERE).ok
    assert here.has(there, THERE, HERE)
    assert driver.count("copies") == 4 * LAYERS
    assert all("refused a pull" in sentence for sentence in told(caplog)), "by the source"


def test_memory_that_cannot_be_mapped_in_a_trial_comes_through_the_host(
    make_mapped: Make, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = (make_mapped(gpu=gpu, named=True, pool=SentPool) for gpu in ("GPU-1", "GPU-2"))
    there.path.unlink()
    for _ in range(2):
        assert here.pull(there, THERE, HERE).ok
    assert here.has(there, THERE, HERE)
    assert (there.pool.sent, driver.count("copies")) == ([THERE] * 2, 0)
    (sentence,) = told(caplog)
    assert "are not read by cuda" in sentence


def test_of_the_workers_of_two_instances_each_reads_as_its_own_gpu_and_its_peers_say(
    make_mapped: Make, driver: Driver
) -> None:
    """Tensor parallel over two GPUs: those of the same rank are peers."""
    ours = [make_mapped(gpu=gpu, pool=SentPool) for gpu in ("GPU-1", "GPU-2")]
    shared = [make_mapped(gpu=gpu, pool=SentPool) for gpu in ("GPU-1", "GPU-2")]
    shifted = [make_mapped(gpu=gpu, pool=SentPool) for gpu in ("GPU-1", "GPU-3")]
    crossed = [make_mapped(gpu=gpu, pool=SentPool) for gpu in ("GPU-2", "GPU-1")]
    for theirs in (shared, shifted, crossed):
        for here, there in zip(ours, theirs, strict=True):
            assert here.pull(there, THERE, HERE).ok
            assert here.has(there, THERE, HERE)
    assert [end.pool.sent for end in (*shared, *shifted, *crossed)] == [[], [], [], [THERE], [THERE], [THERE]]
    assert driver.count("opened") == 3


def test_peer_in_another_container_of_the_same_gpu_is_reached_over_tcp(
    make_mapped: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder, where the unix socket is, is not seen from here."""
    here = make_mapped(tcp_host="127.0.0.1", pool=SentPool)
    there = make_mapped(tcp_host="127.0.0.1", pool=SentPool)
    address = Address.parse(there.transport.address)
    for listening in tmp_path.glob(f"kv-{address.incarnation[:16]}*"):
        listening.unlink()
    for _ in range(2):
        assert here.pull(there, THERE, HERE).ok
    assert here.has(there, THERE, HERE)
    (sentence,) = told(caplog)
    assert "are not read by cuda: the source cannot be reached" in sentence
    assert sentence.endswith("cuda: No such file or directory)")


def test_source_that_takes_no_connection_for_a_moment_is_read_again_after_it(
    make_mapped: Make, driver: Driver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = make_mapped(tcp_host="127.0.0.1", pool=SentPool)
    there = make_mapped(tcp_host="127.0.0.1", pool=SentPool)
    (listening,) = tmp_path.glob(f"kv-{Address.parse(there.transport.address).incarnation[:16]}*")
    aside = listening.rename(tmp_path / "aside")
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(listening))
        assert here.pull(there, THERE, HERE).ok
    assert (there.pool.sent, driver.count("copies")) == ([THERE], 0)
    aside.rename(listening)
    assert here.pull(there, [3], [3]).ok
    assert here.has(there, [*THERE, 3], [*HERE, 3])
    assert (there.pool.sent, driver.count("copies"), told(caplog)) == ([THERE], LAYERS, [])


def test_end_without_a_gpu_and_one_with_exchange_blocks(make_mapped: Make, tmp_path: Path) -> None:
    here = make_mapped(pool=SentPool)
    plain = SocketTransport(
        SentPool.of_arrays(list(here.memory.clone()), fingerprint="x"),
        SECRET,
        SocketOptions(folder=tmp_path, tcp_host=None),
    )
    assert Address.parse(plain.address).gpu == ""
    pull = plain.pull(here.transport.address, [1], [2], 5.0, on_done=lambda _: None, on_released=lambda: None)
    result = pull.wait(10.0)
    assert result is not None
    assert result.ok
    plain.close()
