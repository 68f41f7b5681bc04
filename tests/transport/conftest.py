"""Every way crossed with every kind of pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from transport_ends import SECRET, End, Kind, memory_of

from llumnix.transport.sockets import SocketTransport


@pytest.fixture(
    params=[Kind("unix", False), Kind("tcp", False), Kind("unix", True), Kind("tcp", True)],
    ids=["unix", "tcp", "staged-unix", "staged-tcp"],
)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


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
