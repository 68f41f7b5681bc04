"""Every way crossed with every kind of pool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mapped_ends import Driver, MappedEnd
from stalling_source import BLOCKS, CHUNK_BYTES, FINGERPRINT, StallingPool
from transport_ends import PLENTY_S, SECRET, End, Kind, memory_of

from c_stand_ins import built
from llumnix.transport import lanes
from llumnix.transport.port import PullInFlight
from llumnix.transport.sockets import SocketTransport


@pytest.fixture(
    params=[
        Kind("unix", False),
        Kind("tcp", False),
        Kind("unix", True),
        Kind("tcp", True),
        Kind("unix", True, lanes=2),
    ],
    ids=["unix", "tcp", "staged-unix", "staged-tcp", "two-lanes"],
)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kind:
    kind: Kind = request.param
    if kind.lanes > 1:
        monkeypatch.setattr(lanes, "LANE_BYTES", 1)
    return kind


@pytest.fixture
def make_end(kind: Kind, tmp_path: Path) -> Iterator[Callable[..., End]]:
    ends: list[End] = []

    def make(
        seed: int = 0,
        *,
        fingerprint: str = "model/tp0",
        secret: bytes = SECRET,
        memory: list[np.ndarray] | None = None,
        **options: object,
    ) -> End:
        if memory is None:
            memory = memory_of(seed, scattered=kind.staged)
        end = End(SocketTransport(kind.pool(memory, fingerprint), secret, kind.options(tmp_path, **options)), memory)
        ends.append(end)
        return end

    yield make
    for end in ends:
        end.transport.close()


@pytest.fixture
def half_pulled(kind: Kind, make_end: Callable[..., End], tmp_path: Path) -> Iterator[tuple[str, End, PullInFlight]]:
    """A source's address, a target, and the one pull that it can have in flight: only half of it arrives."""
    half = threading.Event()
    pool = StallingPool.filled(on_half=half.set)
    source = SocketTransport(pool, SECRET, kind.options(tmp_path))
    target = make_end(memory=[np.zeros((BLOCKS, CHUNK_BYTES), np.uint8)], fingerprint=FINGERPRINT, max_pulls=1)
    pull = target.pull(source.address, range(BLOCKS), range(BLOCKS))
    assert half.wait(PLENTY_S)
    yield source.address, target, pull
    pool.go_on.set()
    source.close()


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> str:
    return built(Path(__file__).with_name("fake_cuda.c"), tmp_path_factory.mktemp("cuda") / "libcuda.so.1")


@pytest.fixture
def driver(fake_cuda: str) -> Driver:
    return Driver(fake_cuda)


@pytest.fixture
def make_mapped(driver: Driver, tmp_path: Path) -> Iterator[Callable[..., MappedEnd]]:
    ends: list[MappedEnd] = []

    def make(**options: Any) -> MappedEnd:
        ends.append(MappedEnd(driver, tmp_path, 10_000 * (len(ends) + 1), **options))
        return ends[-1]

    yield make
    for end in ends:
        end.transport.close()
        end.path.unlink(missing_ok=True)
