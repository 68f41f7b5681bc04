"""What is done for each version of vLLM, tried on the one that is installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

vllm = pytest.importorskip("vllm")

import torch  # noqa: E402

from llumnix.engine.vllm import versions  # noqa: E402
from llumnix.engine.vllm.instance.kv_pool import _fingerprint  # noqa: E402


def drawn(seed: int, index: int) -> list[float]:
    versions.draw_apart(seed, index)
    return torch.rand(3).tolist()


@pytest.fixture(params=[(0, 31), versions.RELEASE], ids=["0.31", "installed"])
def release(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setattr(versions, "RELEASE", request.param)
    chosen: tuple[int, int] = request.param
    return chosen


@pytest.mark.usefixtures("release")
def test_instances_draw_apart_and_alike_in_every_version() -> None:
    torch.manual_seed(7)
    as_a_vllm_alone = torch.rand(3).tolist()
    told = [drawn(7, index) for index in range(4)]
    assert told[0] == as_a_vllm_alone
    assert len({tuple(each) for each in told}) == 4
    assert told[2] == pytest.approx([0.69530314, 0.99500632, 0.44048524]), "another version draws otherwise"


def test_blocks_that_come_from_outside_are_not_zeroed_where_that_can_be_said(release: tuple[int, int]) -> None:
    assert versions.not_zeroed((0, 1)) == ({} if release == (0, 31) else {"skip_zeroing_group_ids": (0, 1)})


def test_engines_of_two_versions_exchange_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(version: str) -> str:
        monkeypatch.setattr(vllm, "__version__", version)
        return _fingerprint(worker, [torch.zeros(2, 4)])

    model = SimpleNamespace(model="m", revision=None, dtype="d")
    parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1)
    cache = SimpleNamespace(cache_dtype="auto")
    config: Any = SimpleNamespace(
        model_config=model, parallel_config=parallel, cache_config=cache, speculative_config=None
    )
    worker = SimpleNamespace(vllm_config=config, rank=0, model_runner=SimpleNamespace(attn_groups=[]))
    assert fingerprint("0.32.0") == fingerprint("0.32.0")
    assert fingerprint("0.32.0") != fingerprint("0.31.0")
