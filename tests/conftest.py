"""Rings from fast to slow: a mistake in the pure core shows before any process is started.

Tests that start processes say so themselves (`live`, `vllm`); the ring of all others follows from their folder.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from admin_answers import Answer, Install
    from two_machines import TwoMachines

# An example may wait for its turn on a core. Where a change is judged, all changes are tried with the same ones.
settings.register_profile("shared machine", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared machine")

_RINGS = ("pure", "simulation", "io", "adapter", "late", "live", "vllm")
_RING_OF_FOLDER = {
    "sim": "simulation",
    "golden": "simulation",
    "paper": "simulation",
    "report": "simulation",
    "bench": "io",
    "transport": "io",
    "monitoring": "io",
    "engine": "adapter",
    "front_end": "adapter",
    "late": "late",
    "vllm": "vllm",
}


def pytest_configure() -> None:
    """`timeout` ends a run as Ctrl-C does: what it has started and made is tidied up, and what it found is told."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # `timeout` tells twice, and the second time would end the tidying
    raise KeyboardInterrupt


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spares the pure ring the import of the engine, which takes longer than its tests."""
    only_pure = config.getoption("markexpr") == "pure"
    return True if only_pure and collection_path.name in _RING_OF_FOLDER else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "nightly" not in config.getoption("markexpr"):
        slow = [item for item in items if item.get_closest_marker("nightly")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)
    for item in items:
        if _ring(item) is None:
            item.add_marker(_RING_OF_FOLDER.get(item.path.parent.name, "pure"))
    items.sort(key=lambda item: _RINGS.index(_ring(item) or ""))


def _ring(item: pytest.Item) -> str | None:
    """The slowest that the test is marked with."""
    return next((ring for ring in reversed(_RINGS) if item.get_closest_marker(ring)), None)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoMachines]:
    """Skips where namespaces cannot be made."""
    from linked_namespace import why_not_possible
    from two_machines import TwoMachines

    if (why_not := why_not_possible()) is not None:
        pytest.skip(why_not)
    machines = TwoMachines(tmp_path_factory.mktemp("m"))
    yield machines
    machines.close()


@pytest.fixture
def answer_with(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes every client talk to a function."""
    import httpx

    real = httpx.Client

    def install(answer: Answer) -> None:
        monkeypatch.setattr("httpx.Client", lambda **options: real(transport=httpx.MockTransport(answer), **options))

    return install
