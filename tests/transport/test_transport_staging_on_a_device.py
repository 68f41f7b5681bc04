"""What a staged pool asks of a GPU's driver, shown on a double that keeps two of its rules; the bytes are on the CPU.

A thread's current device is 0 until it says otherwise, and leaving a stream goes back to the current device, which then
has a context. Waiting for an event keeps a core busy, unless the event was made to block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transport_ends import finished

from llumnix.transport.sockets import SocketOptions, SocketTransport
from llumnix.transport.staging import StagedPool

OURS = torch.device("cuda", 1)
WAIT_S = 10.0


class OnDevice(torch.Tensor):
    """Says that it is on our device."""

    device = OURS


class Driver:
    def __init__(self) -> None:
        self.contexts: set[int] = set()
        self.busy_waits = 0
        self.waits = 0
        self._thread = threading.local()

    def set_device(self, device: torch.device) -> None:
        self._thread.current = device.index
        self.contexts.add(device.index)

    @contextmanager
    def stream(self, stream: torch.device) -> Iterator[None]:
        self.contexts.add(stream.index)
        yield
        self.contexts.add(getattr(self._thread, "current", 0))

    def event(self, *, blocking: bool = False) -> Event:
        return Event(self, blocking)


class Event:
    def __init__(self, driver: Driver, blocking: bool) -> None:
        self._driver = driver
        self._blocking = blocking

    def record(self) -> None: ...

    def synchronize(self) -> None:
        self._driver.waits += 1
        self._driver.busy_waits += not self._blocking


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    empty = torch.empty

    def on_the_cpu(*shape: int, dtype: torch.dtype, **_where: Any) -> torch.Tensor:
        return empty(*shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "set_device", made.set_device)
    monkeypatch.setattr(torch.cuda, "stream", made.stream)
    return made


def test_blocks_come_and_go_without_a_context_elsewhere_and_without_a_busy_core(driver: Driver) -> None:
    tensors = [torch.arange(6 * 8).view(6, 8).clone().as_subclass(OnDevice) for _ in range(2)]
    tensors[1] += 100  # type: ignore[misc]
    source, target = (
        SocketTransport(StagedPool([tensor], fingerprint="x", staging_bytes=64), b"s" * 16, SocketOptions())
        for tensor in tensors
    )
    pull = target.pull(source.address, [1, 3, 5], [5, 0, 2], WAIT_S, on_done=lambda _: None, on_released=lambda: None)
    assert finished(pull.wait(WAIT_S)).ok
    for end in (source, target):
        end.close()
    assert torch.equal(tensors[1].as_subclass(torch.Tensor)[[5, 0, 2]], tensors[0].as_subclass(torch.Tensor)[[1, 3, 5]])
    assert driver.contexts == {OURS.index}
    assert driver.waits > 0
    assert driver.busy_waits == 0
