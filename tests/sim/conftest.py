from __future__ import annotations

import pytest

from llumnix.sim import launcher
from llumnix.sim.instance import SimInstance


@pytest.fixture
def instances(monkeypatch: pytest.MonkeyPatch) -> list[SimInstance]:
    """Every instance that a run makes."""
    made: list[SimInstance] = []

    class Kept(SimInstance):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(launcher, "SimInstance", Kept)
    return made
