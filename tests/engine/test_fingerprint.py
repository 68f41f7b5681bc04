"""Whose blocks mean the same: workers that differ in what is computed into them, or in which part of it, do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from llumnix.engine.vllm.instance.kv_pool import _fingerprint

VIEWS = [torch.zeros(2, 4)]
DRAFT_MODEL = SimpleNamespace(model="small", revision=None, dtype=torch.float32)


def drafter(method: str, tokens: int, model: Any = None) -> Any:
    return SimpleNamespace(method=method, num_speculative_tokens=tokens, draft_model_config=model)


def fingerprint(
    rank: int = 0, tensor: int = 1, pipeline: int = 1, drafts: Any = None, layout: str | None = "LBHNC"
) -> str:
    config = SimpleNamespace(
        model_config=SimpleNamespace(model="m", revision=None, dtype=torch.float32),
        cache_config=SimpleNamespace(cache_dtype="auto", kv_cache_layout=layout),
        parallel_config=SimpleNamespace(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline),
        speculative_config=drafts,
    )
    return _fingerprint(SimpleNamespace(vllm_config=config, rank=rank), VIEWS)


def test_equal_workers_have_one() -> None:
    assert fingerprint() == fingerprint()
    assert fingerprint(drafts=drafter("eagle", 3, DRAFT_MODEL)) == fingerprint(drafts=drafter("eagle", 3, DRAFT_MODEL))


@pytest.mark.parametrize(
    "other",
    [
        {"drafts": drafter("ngram", 3)},
        {"drafts": drafter("draft_model", 2, DRAFT_MODEL)},
        {"drafts": drafter("draft_model", 3, SimpleNamespace(**vars(DRAFT_MODEL) | {"model": "another"}))},
        {"rank": 1},
        {"tensor": 2},
        {"pipeline": 2},
        {"layout": "BLNHC"},
    ],
    ids=str,
)
def test_workers_that_differ_have_others(other: dict[str, Any]) -> None:
    assert fingerprint(**other) != fingerprint(drafts=drafter("draft_model", 3, DRAFT_MODEL))
    assert fingerprint(**other) != fingerprint()


def test_stages_of_a_pipeline_are_not_slices_of_a_layer() -> None:
    assert fingerprint(rank=1, tensor=2) != fingerprint(rank=1, pipeline=2)
