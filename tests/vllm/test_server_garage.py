"""Servers of modules that end badly, played by stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import server_garage
from server_garage import Garage, Wish, own_server


class StandIn:
    def __init__(self, *flags: Any, waits: bool = True, **_: Any) -> None:
        self.folder, *more = flags
        self.flags = tuple(more)
        self.ready = waits
        self.killed = self.stopped = False

    def wait_until_ready(self) -> None:
        self.ready = True

    def kill(self) -> None:
        self.killed = True

    def stop(self) -> None:
        self.stopped = True


def a_wish(*flags: str) -> Wish:
    return Wish(flags=flags, instances=2, environment=(), api_key=None)


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
    garage, wish = Garage(tmp_path_factory), a_wish()
    first = garage.server(wish)
    assert garage.server(wish) is first
    garage.drop()
    assert was_killed(first)
    assert garage.server(wish) is not first


def test_next_server_starts_while_the_one_before_it_is_in_use(tmp_path_factory: pytest.TempPathFactory) -> None:
    garage = Garage(tmp_path_factory)
    first = garage.server(a_wish("first"))
    garage.begin(a_wish("second"))
    assert garage.server(a_wish("first")) is first
    served: list[Any] = [first, garage.server(a_wish("second"))]
    assert (served[1].flags, served[1].ready) == (("second",), True)
    assert [(each.stopped, each.killed) for each in served] == [(True, False), (False, False)]


def test_server_that_starts_ahead_and_is_not_wanted_is_ended(tmp_path_factory: pytest.TempPathFactory) -> None:
    garage = Garage(tmp_path_factory)
    garage.server(a_wish("first"))
    garage.begin(a_wish("second"))
    begun: Any = garage._next
    third: Any = garage.server(a_wish("third"))
    assert was_killed(begun[1])
    assert third.flags == ("third",)
    garage.begin(a_wish("fourth"))
    begun = garage._next
    garage.close()
    assert (was_killed(begun[1]), third.stopped) == (True, True)


def test_flags_that_need_a_model_are_asked_for_when_the_server_is_to_start(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    asked: list[Path] = []

    def flags(folder: Path) -> tuple[str, ...]:
        asked.append(folder)
        return (f"made in {folder}",)

    garage, wish = Garage(tmp_path_factory), Wish(flags=flags, instances=2, environment=(), api_key=None)
    assert asked == []
    garage.begin(wish)
    served: Any = garage.server(wish)
    assert (served.flags, asked) == ((f"made in {asked[0]}",), [served.folder])
