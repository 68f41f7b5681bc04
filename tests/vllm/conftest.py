"""Servers for the modules: one at a time, and the next module keeps it if it asks for the same one. If it asks for
another, that one starts while this one's tests run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
from frame.checked import Server
from server_garage import Garage, Wish


@pytest.fixture(scope="session")
def garage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Garage]:
    held = Garage(tmp_path_factory)
    yield held
    held.close()


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, garage: Garage) -> Iterator[Server]:
    """At the module's end no request may be left, all blocks must be free, and no process may have complained. If that
    is not so, or a test failed, the next module gets another one."""
    failed_before = request.session.testsfailed
    running = garage.server(Wish.of(request.module))
    if (following := _next_wish(request.session.items, request.module)) is not None:
        garage.begin(following)
    seen = len(running.trouble())
    yield running
    is_sound = request.session.testsfailed == failed_before
    try:
        if not is_sound:
            print(running.logs())
        running.wait_until_quiet()
        expected = getattr(request.module, "EXPECTED_TROUBLE", ())
        unexpected = [line for line in running.trouble()[seen:] if not any(words in line for words in expected)]
        assert not unexpected, "\n".join(unexpected)
    except BaseException:
        is_sound = False
        raise
    finally:
        if not is_sound:
            garage.drop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses a server starts real engines. Modules that want the same one come one after the other."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    places: dict[Wish | Path, int] = {}
    for item in here:
        wanted = _wanted(item)
        places.setdefault(wanted, len(places))
        if isinstance(wanted, Wish):
            item.add_marker(pytest.mark.vllm)

    def turn(item: pytest.Item) -> tuple[bool, int]:
        wanted = _wanted(item)
        return isinstance(wanted, Path), places[wanted]

    items[:] = [item for item in items if item not in here] + sorted(here, key=turn)


def _next_wish(items: list[pytest.Item], module: Any) -> Wish | None:
    """What comes directly after all that want the server of this module."""
    wanted = Wish.of(module)
    following = dropwhile(lambda item: getattr(item, "module", None) is not module, items)
    other = next((each for item in following if (each := _wanted(item)) != wanted), None)
    return other if isinstance(other, Wish) else None


def _wanted(item: pytest.Item) -> Wish | Path:
    """The server that it uses of the garage; if it does not, its module."""
    if "garage" in getattr(item, "fixturenames", ()):
        return Wish.of(getattr(item, "module", None))
    return item.path
