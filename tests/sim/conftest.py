from __future__ import annotations

import pytest

from llumnix.sim import driver


@pytest.fixture
def instances(monkeypatch: pytest.MonkeyPatch) -> list[driver.SimInstance]:
    """Every instance that a run makes."""
    made: list[driver.SimInstance] = []

    class Kept(driver.SimInstance):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(driver, "SimInstance", Kept)
    return made
