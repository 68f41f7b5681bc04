"""Servers of modules that end badly, played by stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import server_garage
from server_garage import Garage, Wish, own_server


class StandIn:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True


def was_killed(server: Any) -> bool:
    return bool(server.killed)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_garage, "Server", StandIn)


def test_own_server_of_a_module_that_fails_is_ended(tmp_path: Path) -> None:
    served: list[Any] = []

    def fail(running: Any) -> None:
        served.append(running)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), own_server(tmp_path) as running:
        fail(running)
    assert was_killed(served[0])


def test_server_that_is_dropped_is_ended_and_nobody_else_gets_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    garage, wish = Garage(tmp_path_factory), Wish(flags=(), instances=2, environment=(), api_key=None)
    first = garage.server(wish)
    assert garage.server(wish) is first
    garage.drop()
    assert was_killed(first)
    assert garage.server(wish) is not first
