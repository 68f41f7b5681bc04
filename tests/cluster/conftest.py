from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from served import Serve


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Serve]]:
    """Starts `llumnix serve` with these flags and an engine that is none; nothing of it is left after the test."""
    from served import Serve

    started: list[Serve] = []

    def start(*flags: str, console: Path | None = None, more_environment: Mapping[str, str] | None = None) -> Serve:
        folder = tmp_path_factory.mktemp("s")
        started.append(Serve(folder, *flags, console=console, more_environment=more_environment))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.end()
