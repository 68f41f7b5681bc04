"""Whose blocks mean the same: workers that differ in what is computed into them, or in which part of it, do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from small_engine import FULL
from vllm import _custom_ops as ops
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.worker.utils import AttentionGroup

from llumnix import tiny_model
from llumnix.engine.vllm.instance.kv_pool import _fingerprint

VIEWS = [torch.zeros(2, 4)]
DRAFT_MODEL = SimpleNamespace(model="small", revision=None, dtype=torch.float32)


def drafter(method: str, tokens: int, model: Any = None) -> Any:
    return SimpleNamespace(method=method, num_speculative_tokens=tokens, draft_model_config=model)


def layers(backend: str) -> Any:
    """That attend by it."""
    return SimpleNamespace(backend=SimpleNamespace(get_name=lambda: backend), get_metadata_builder=SimpleNamespace)


ATTENTION, STATES = layers("FLASH_ATTN"), layers("GDN_ATTN")


def fingerprint(
    rank: int = 0,
    tensor: int = 1,
    pipeline: int = 1,
    drafts: Any = None,
    layout: str | None = "LBHNC",
    groups: Any = ((ATTENTION,), (STATES,)),
) -> str:
    config = SimpleNamespace(
        model_config=SimpleNamespace(model="m", revision=None, dtype=torch.float32),
        cache_config=SimpleNamespace(cache_dtype="auto", kv_cache_layout=layout),
        parallel_config=SimpleNamespace(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline),
        speculative_config=drafts,
    )
    runner = SimpleNamespace(attn_groups=groups)
    return _fingerprint(SimpleNamespace(vllm_config=config, rank=rank, model_runner=runner), VIEWS)


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
        {"groups": ((layers("FLASHINFER"),), (STATES,))},
        {"groups": ((ATTENTION, STATES), ())},
    ],
    ids=str,
)
def test_workers_that_differ_have_others(other: dict[str, Any]) -> None:
    assert fingerprint(**other) != fingerprint(drafts=drafter("draft_model", 3, DRAFT_MODEL))
    assert fingerprint(**other) != fingerprint()


def test_stages_of_a_pipeline_are_not_slices_of_a_layer() -> None:
    assert fingerprint(rank=1, tensor=2) != fingerprint(rank=1, pipeline=2)


def fingerprint_on_a_cpu(monkeypatch: pytest.MonkeyPatch, dtype: Any, *, tiles: bool, block_tokens: int = 128) -> str:
    """Of an engine of vLLM's that attends on a processor with or without AMX."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    arguments = EngineArgs(model=str(tiny_model.ensure()), dtype=dtype, max_model_len=256, enforce_eager=True)
    group = AttentionGroup(CPUAttentionBackend, [], FULL.copy_with_new_block_size(block_tokens), 0)
    group.create_metadata_builders(arguments.create_engine_config(), torch.device("cpu"))
    return fingerprint(groups=((group,),))


def test_two_kinds_of_processors_exchange_blocks_if_they_keep_them_in_one_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_tiles = fingerprint_on_a_cpu(monkeypatch, "bfloat16", tiles=True)
    assert fingerprint_on_a_cpu(monkeypatch, "bfloat16", tiles=True) == with_tiles
    assert fingerprint_on_a_cpu(monkeypatch, "bfloat16", tiles=False) != with_tiles
    plain = fingerprint_on_a_cpu(monkeypatch, "float32", tiles=True)
    assert fingerprint_on_a_cpu(monkeypatch, "float32", tiles=False) == plain
    assert fingerprint_on_a_cpu(monkeypatch, "float32", tiles=False, block_tokens=16) == plain


def test_kernels_that_count_as_alike_write_the_same_bytes() -> None:
    keys, values = torch.randn(2, 100, 2, 64, dtype=torch.bfloat16).unbind()
    written = []
    for isa in ("vec", "vec16"):
        cache = torch.zeros(1, 2, 256, 64, dtype=torch.bfloat16)
        key_cache, value_cache = cache.chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(keys, values, key_cache, value_cache, torch.arange(100), isa)
        written.append(cache)
    assert torch.equal(*written)
