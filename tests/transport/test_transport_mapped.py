"""Blocks that are read where a peer has them: the code for CUDA IPC, on a stand-in for its driver over mapped files."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mapped_ends import BLOCKS, LAYERS, WORDS, Driver, MappedEnd
from transport_ends import PLENTY_S, finished

from llumnix.transport import mapped as mapped_module
from llumnix.transport.connection import Mapping
from llumnix.transport.cuda import CudaDriver
from llumnix.transport.device import Moment
from llumnix.transport.mapped import MappedMemory
from llumnix.transport.memory import MemoryPool
from llumnix.transport.port import TransportError


@pytest.fixture
def make_end(make_mapped: Callable[..., MappedEnd]) -> Callable[..., MappedEnd]:
    return make_mapped


def test_blocks_are_copied_from_there_and_neighbours_at_once(
    make_end: Callable[..., MappedEnd], driver: Driver
) -> None:
    here, there = make_end(), make_end()
    assert ",cuda:" in there.transport.address
    before = here.memory.clone()
    result = here.pull(there, [1, 2, 7], [4, 5, 0])
    assert (result.ok, result.bytes_read) == (True, 3 * LAYERS * WORDS * 8)
    assert torch.equal(here.memory[:, [4, 5, 0]], there.memory[:, [1, 2, 7]])
    assert torch.equal(here.memory[:, [1, 2, 3, 6, 7]], before[:, [1, 2, 3, 6, 7]])
    assert driver.count("copies") == 2 * LAYERS
    assert here.pull(there, [3], [3]).ok
    assert driver.count("opened") == 1, "once for a peer"


def test_memory_that_cannot_be_mapped_comes_through_the_host(
    make_end: Callable[..., MappedEnd], driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = make_end(pool=MemoryPool), make_end(pool=MemoryPool)
    there.path.unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert here.pull(there, [1, 2], [2, 1]).ok
    assert torch.equal(here.memory[:, [2, 1]], there.memory[:, [1, 2]])
    assert driver.count("copies") == 0
    told = [record.getMessage() for record in caplog.records if "are not read by cuda" in record.getMessage()]
    assert len(told) == 1
    assert "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED (217)" in told[0]


def test_what_was_read_of_a_source_that_ended_meanwhile_does_not_count(
    make_end: Callable[..., MappedEnd], driver: Driver
) -> None:
    here, there = make_end(), make_end()
    driver.copied = there.transport.close
    result = here.pull(there, [1], [1])
    assert not result.ok
    assert driver.count("opened") == 0, "it is unmapped"
    assert not here.pull(there, [1], [1]).ok
    assert driver.count("copies") == LAYERS, "it was not read again"


def test_memory_of_a_peer_that_is_gone_is_held_no_longer(make_end: Callable[..., MappedEnd], driver: Driver) -> None:
    """A device has it free only when nobody maps it."""
    here, there = make_end(), make_end()
    assert here.pull(there, [1], [1]).ok
    assert driver.count("opened") == 1
    here.transport.forget(there.transport.address)
    assert driver.count("opened") == 0
    assert here.pull(there, [2], [2]).ok, "it is there after all"
    assert torch.equal(here.memory[:, 2], there.memory[:, 2])


def test_pull_that_is_called_off_ends_between_two_batches(
    make_end: Callable[..., MappedEnd], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_module, "BATCH_BYTES", WORDS * 8)
    here, there = make_end(), make_end()
    pulls: list[Any] = []
    begun = threading.Event()

    def cancel() -> None:
        assert begun.wait(PLENTY_S)
        pulls[0].cancel()

    driver.copied = cancel
    pulls.append(
        here.transport.pull(
            there.transport.address, [1, 3], [1, 3], PLENTY_S, on_done=lambda _: None, on_released=lambda: None
        )
    )
    begun.set()
    result = finished(pulls[0].wait(PLENTY_S))
    assert (result.ok, result.reason, result.bytes_read) == (False, "the pull was cancelled", 0)
    assert driver.count("copies") < 2 * LAYERS


def test_copies_of_a_batch_that_fails_are_over_before_the_pull_is(
    make_end: Callable[..., MappedEnd], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(Moment, "record", lambda _: done.append("recorded"))
    monkeypatch.setattr(Moment, "wait", lambda _: done.append("waited"))
    here, there = make_end(), make_end()

    def fail() -> None:
        raise TransportError("the driver took a part of it")

    driver.copied = fail
    assert here.pull(there, [1], [1]).reason == "the driver took a part of it"
    assert done == ["recorded", "waited"]


def test_blocks_that_the_source_does_not_have_are_not_read(make_end: Callable[..., MappedEnd], driver: Driver) -> None:
    result = make_end().pull(make_end(), [BLOCKS], [0])
    assert "the source refused: block 8 is not one of the 8 blocks" in result.reason
    assert driver.count("copies") == 0


def test_memory_with_other_regions_is_not_read(make_end: Callable[..., MappedEnd], driver: Driver) -> None:
    here, there = make_end(), make_end()
    offers = there.transport._server.offers
    offers["cuda"] = Mapping(offers["cuda"].handle, offers["cuda"].regions[:1])
    assert here.pull(there, [1], [1]).reason == "the source names 1 regions, not 3"
    assert driver.count("copies") == 0


def test_many_copies_are_given_to_a_stream_at_once(driver: Driver, tmp_path: Path) -> None:
    memory = driver.allocate(tmp_path / "memory", 8)
    memory[:] = torch.arange(8)
    places = np.array([memory.data_ptr() + 8 * word for word in range(8)], dtype=np.uint64)
    driver.copy(places[[0, 3]], places[[6, 7]], np.array([8, 8], dtype=np.uint64), stream=1)
    assert memory.tolist() == [6, 1, 2, 7, 4, 5, 6, 7]
    assert (driver.count("batches"), driver.count("copies")) == (1, 0)


def test_the_kernel_copies_scattered_runs_and_compiles_for_gpus() -> None:
    program = Path(__file__).with_name("interpreted_copies.py")
    paths = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(program.parents[1])])}
    run = subprocess.run(
        [sys.executable, str(program)], env=paths, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout == "right\n", run.stderr


def test_small_copies_go_to_the_kernel_and_those_that_it_cannot_take_to_the_driver(
    make_end: Callable[..., MappedEnd], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    class Kernel:
        """It is not there on a CPU."""

        def takes(self, targets: Any, _sources: Any, sizes: Any) -> bool:
            return bool((sizes < 2 * WORDS * 8).all())

        def copy(self, targets: Any, sources: Any, sizes: Any) -> None:
            given.append(len(sizes))
            driver.copy(targets, sources, sizes, stream=1)

    monkeypatch.setattr(mapped_module, "_kernel", lambda *_: Kernel())
    here, there = make_end(), make_end()
    assert here.pull(there, [1, 3], [4, 6]).ok
    assert (given, driver.count("batches"), driver.count("copies")) == ([2 * LAYERS], 1, 0)
    assert here.pull(there, [4, 5], [0, 1]).ok, "neighbours at both ends"
    assert (len(given), driver.count("copies")) == (1, LAYERS)
    monkeypatch.setattr(mapped_module, "SMALL_BYTES", WORDS * 8)
    assert here.pull(there, [1], [7]).ok
    assert (len(given), driver.count("copies")) == (1, 2 * LAYERS)
    assert torch.equal(here.memory[:, [4, 6, 0, 1, 7]], there.memory[:, [1, 3, 4, 5, 1]])


def test_no_copy_is_longer_than_a_launch_of_the_kernel_takes(
    make_end: Callable[..., MappedEnd], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_module, "RUN_BYTES", 3 * WORDS * 8)
    given: list[int] = []
    copy = driver.copy

    def noted(targets: Any, sources: Any, sizes: Any, stream: int) -> None:
        given.extend(sizes.tolist())
        copy(targets, sources, sizes, stream)

    monkeypatch.setattr(driver, "copy", noted)
    here, there = make_end(), make_end()
    everything = list(range(BLOCKS))
    assert here.pull(there, everything, everything).ok
    assert here.has(there, everything, everything)
    assert given == [3 * WORDS * 8, 3 * WORDS * 8, 2 * WORDS * 8] * LAYERS


def test_memory_that_the_driver_does_not_know_is_not_offered(driver: Driver) -> None:
    with pytest.raises(TransportError, match=r"cuMemGetAddressRange_v2 failed with CUDA_ERROR_INVALID_VALUE \(1\)"):
        MappedMemory([torch.zeros(4, 8)], driver, between_gpus=True)


def test_no_driver() -> None:
    with pytest.raises(TransportError, match="CUDA's driver cannot be loaded"):
        CudaDriver("libno-such-library.so.1")
