"""Token equality of every family with vLLM's V2 model runner, as test_vllm_families.py has it with V1: a small case of
each that the interpreter carries, and copies that are wrong."""

from __future__ import annotations

from pathlib import Path

import interpreted
import pytest
from families.equality import judge
from families.table import FAMILIES

pytestmark = [pytest.mark.vllm, pytest.mark.nightly, pytest.mark.timeout(600)]

REQUESTS = 3
MOST_TOKENS = 40

NOT_CARRIED = {
    "mtp-hybrid": "`causal_conv1d_update_cpu` ends the engine at a step with fewer tokens than were accepted before",
}
"""What vLLM 0.32 does with V2 and this family on a CPU, where it does not serve it."""


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NOT_CARRIED])
def test_moved_streams_say_what_undisturbed_ones_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in interpreted.ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    verdict = judge(
        name,
        tmp_path,
        requests=REQUESTS,
        seed=1,
        concurrency=REQUESTS,
        most_tokens=MOST_TOKENS,
        flags=interpreted.ENGINE,
    )
    assert "Using V2 Model Runner" in (tmp_path / "right" / "i0.log").read_text()
    assert verdict.problems == []
    assert verdict.differing_tokens == 0
    assert verdict.controls
    assert verdict.seen
