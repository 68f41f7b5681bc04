"""Servers for the modules: one at a time, and the next module keeps it if it asks for the same one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from frame.checked import USUAL_FLAGS, Server


@dataclass(frozen=True, slots=True)
class Wish:
    """What a module wants of its server: its constants `FLAGS`, `INSTANCES`, `ENVIRONMENT`, `API_KEY`."""

    flags: tuple[str, ...]
    instances: int
    environment: tuple[tuple[str, str], ...]
    api_key: str | None

    @classmethod
    def of(cls, module: Any) -> Wish:
        environment = getattr(module, "ENVIRONMENT", {})
        return cls(
            flags=getattr(module, "FLAGS", USUAL_FLAGS),
            instances=getattr(module, "INSTANCES", 2),
            environment=tuple(sorted(environment.items())),
            api_key=getattr(module, "API_KEY", None),
        )


class Garage:
    """Holds the one server that runs."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._running: Server | None = None
        self._wish: Wish | None = None

    def server(self, wish: Wish) -> Server:
        if self._running is None or wish != self._wish:
            self.close()
            self._running = Server(
                self._factory.mktemp("server"),
                *wish.flags,
                instances=wish.instances,
                environment=dict(wish.environment),
                api_key=wish.api_key,
            )
            self._wish = wish
        return self._running

    def close(self) -> None:
        """Nothing may be left of it."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()


@pytest.fixture(scope="session")
def garage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Garage]:
    held = Garage(tmp_path_factory)
    yield held
    held.close()


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, garage: Garage) -> Iterator[Server]:
    """At the module's end no request may be left, all blocks must be free, and no process may have complained."""
    failed_before = request.session.testsfailed
    running = garage.server(Wish.of(request.module))
    seen = len(running.trouble())
    yield running
    if request.session.testsfailed > failed_before:
        print(running.logs())
    running.wait_until_quiet()
    expected = getattr(request.module, "EXPECTED_TROUBLE", ())
    unexpected = [line for line in running.trouble()[seen:] if not any(words in line for words in expected)]
    assert not unexpected, "\n".join(unexpected)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses a server starts real engines."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "garage" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.vllm)
