"""Engines that move nothing say why, and serve all the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)

from llumnix import tiny_model
from llumnix.engine.vllm.instance.movable import why_engine_pins
from llumnix.engine.vllm.instance.worker import WorkerExtension
from llumnix.wire.addresses import AddressBook

FULL = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32)
SHORT = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
SLIDING = SlidingWindowSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32, sliding_window=64)
MAMBA = MambaSpec(block_size=16, shapes=((2, 2),), dtypes=(torch.float32,))


@cache
def _config() -> VllmConfig:
    return EngineArgs(model=str(tiny_model.ensure()), enforce_eager=True, max_model_len=64).create_engine_config()


def _with(part: str, field: str, value: object) -> Callable[[Any], object]:
    return lambda patch: patch.setattr(getattr(_config(), part), field, value)


def _caches(*specs: Any) -> KVCacheConfig:
    return KVCacheConfig(64, [], [KVCacheGroupSpec([f"layer {n}"], spec) for n, spec in enumerate(specs)])


@pytest.mark.parametrize("specs", [(FULL,), (SLIDING,), (FULL, SLIDING)])
def test_what_tokens_are_appended_to_moves(specs: tuple[Any, ...]) -> None:
    assert why_engine_pins(_config(), _caches(*specs)) == ""


@pytest.mark.parametrize(
    ("caches", "why"),
    [
        ((), "no KV cache"),
        ((FULL, MAMBA), "state of kind MambaSpec"),
        ((FULL, SHORT), "zeroed by the next step"),  # of two precisions
    ],
)
def test_caches_that_cannot_be_copied_pin_their_engine(caches: tuple[Any, ...], why: str) -> None:
    assert why in why_engine_pins(_config(), _caches(*caches))


@pytest.mark.parametrize(
    ("part", "field", "value", "why"),
    [
        ("parallel_config", "decode_context_parallel_size", 2, "context parallelism"),
        ("parallel_config", "prefill_context_parallel_size", 2, "context parallelism"),
        ("parallel_config", "pipeline_parallel_size", 2, "pipeline parallelism"),
        ("parallel_config", "data_parallel_size", 2, "data parallel"),
        ("model_config", "enable_sleep_mode", True, "sleep mode"),
        ("attention_config", "hisparse_config", object(), "HiSparse"),
    ],
)
def test_ways_to_run_that_are_not_safe_pin_their_engine(
    part: str, field: str, value: object, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(part, field, value)(monkeypatch)
    assert why in why_engine_pins(_config(), _caches(FULL))


def test_worker_without_a_cache_opens_no_transport() -> None:
    class Worker(WorkerExtension):
        model_runner = SimpleNamespace(kv_caches=[], kv_cache_config=SimpleNamespace(num_blocks=1))
        device = torch.device("cuda")  # nothing is allocated there
        rank = 0

    worker = Worker()
    book = AddressBook(run_dir="", launcher="", scheduler="", fronts=())
    assert worker.llumnix_open(book, "nobody", b"", moves=False) == ""
    worker.llumnix_cancel("nobody", 1)
    worker.llumnix_close()
