"""Same seed, same bytes: the records of a few runs, pinned by their digests.

A change here means that the simulator, a policy or a workload answers differently than before. If that was the
purpose, write the digests anew (`python tests/golden/golden_runs.py`) and say why in the changelog.
"""

from __future__ import annotations

import json

import pytest
from golden_runs import DIGESTS, RUNS, digest


@pytest.mark.parametrize("name", RUNS)
def test_the_run_gives_the_bytes_that_it_always_gave(name: str) -> None:
    assert digest(RUNS[name]) == json.loads(DIGESTS.read_text())[name]


def test_every_pinned_run_still_exists() -> None:
    assert json.loads(DIGESTS.read_text()).keys() == RUNS.keys()
