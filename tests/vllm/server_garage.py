"""The one server of real engines that is in use, kept from module to module as long as they ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from frame.checked import USUAL_FLAGS, Server


@contextmanager
def own_server(folder: Path, *flags: str, **options: Any) -> Iterator[Server]:
    """For a module that must make something before it knows its flags. In the end no request may be left, and no
    process may have complained."""
    running = Server(folder, *flags, **options)
    try:
        yield running
        running.wait_until_quiet()
        running.stop()
        assert running.trouble() == []
    finally:
        running.kill()


@dataclass(frozen=True, slots=True)
class Wish:
    """What a module wants of its server: its constants `FLAGS` (or a function, `flags`), `INSTANCES`, `ENVIRONMENT`,
    `API_KEY`."""

    flags: tuple[str, ...] | Callable[[Path], tuple[str, ...]]
    """Or what gives them once the server, which has this folder, is to start: something may have to be made first."""
    instances: int
    environment: tuple[tuple[str, str], ...]
    api_key: str | None

    @classmethod
    def of(cls, module: Any) -> Wish:
        environment = getattr(module, "ENVIRONMENT", {})
        return cls(
            flags=getattr(module, "flags", getattr(module, "FLAGS", USUAL_FLAGS)),
            instances=getattr(module, "INSTANCES", 2),
            environment=tuple(sorted(environment.items())),
            api_key=getattr(module, "API_KEY", None),
        )


class Garage:
    """Holds the one server that runs, and the next one, which starts meanwhile: of a start, most is the import of the
    engine, which keeps one core busy."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._running: Server | None = None
        self._wish: Wish | None = None
        self._next: tuple[Wish, Server] | None = None

    def server(self, wish: Wish) -> Server:
        """One that is ready."""
        if self._running is None or wish != self._wish:
            self._stop()
            self.begin(wish)
            assert self._next is not None
            (self._wish, begun), self._next = self._next, None
            begun.wait_until_ready()
            self._running = begun
        return self._running

    def begin(self, wish: Wish) -> None:
        """Has it start; nobody waits for it yet. One that was begun for another wish is ended."""
        if self._next is not None and self._next[0] != wish:
            self._end_next()
        if self._next is None:
            self._next = wish, self._started(wish)

    def drop(self) -> None:
        """Who knows what state it is in: nobody else may have it."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()

    def close(self) -> None:
        """Nothing may be left of it."""
        self._end_next()
        self._stop()

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def _end_next(self) -> None:
        begun, self._next = self._next, None
        if begun is not None:
            begun[1].kill()

    def _started(self, wish: Wish) -> Server:
        folder = self._factory.mktemp("server")
        return Server(
            folder,
            *(wish.flags(folder) if callable(wish.flags) else wish.flags),
            instances=wish.instances,
            environment=dict(wish.environment),
            api_key=wish.api_key,
            waits=False,
        )
