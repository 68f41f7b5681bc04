"""Prompts that vLLM does not cut: a step has room for the longest, or the start is refused."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from families.table import engine_flags

from llumnix import tiny_model
from llumnix.engine.vllm import boot
from llumnix.engine.vllm.whole_prompts import make_room
from llumnix.errors import UsageError


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM writes into it."""
    monkeypatch.setattr(os, "environ", {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})


def step_tokens(model: str, *flags: str) -> int:
    scheduling = boot.prepare(list(flags), model).config.scheduler_config
    return int(scheduling.max_num_scheduled_tokens or scheduling.max_num_batched_tokens)


def test_those_of_latent_attention_with_drafts_find_room() -> None:
    """vLLM would queue what has more than these 512 tokens for ever."""
    model, *flags = engine_flags("mla")
    drafts = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}'
    flags += ["--max-num-batched-tokens", "512", "--speculative-config", drafts]
    assert step_tokens(model, *flags) == 8192


def test_those_that_are_cut_need_none() -> None:
    flags = ("--dtype=float32", "--max-model-len", "1024", "--max-num-batched-tokens", "256")
    assert step_tokens(str(tiny_model.ensure()), *flags) == 256


@pytest.mark.parametrize(("tokens", "fits"), [(1022, False), (1023, True)])
def test_start_is_refused_where_one_would_wait_for_ever(tokens: int, fits: bool) -> None:
    flags = ["--dtype=float32", "--max-model-len", "1024", "--max-num-batched-tokens", "2048"]
    flags += ["--no-enable-chunked-prefill", "--max-num-scheduled-tokens", str(tokens)]
    if fits:
        assert step_tokens(str(tiny_model.ensure()), *flags) == tokens
        return
    with pytest.raises(UsageError, match=r"may have 1023 tokens, but a step has room for 1022; .* --max-model-len\.$"):
        boot.prepare(flags, str(tiny_model.ensure()))


def test_encoders_cut_none_whatever_they_are_told() -> None:
    scheduling = SimpleNamespace(enable_chunked_prefill=True, max_num_batched_tokens=256, max_num_scheduled_tokens=None)
    model = SimpleNamespace(attn_type="encoder_only", runner_type="pooling", max_model_len=257)
    config = SimpleNamespace(scheduler_config=scheduling, speculative_config=None, model_config=model)
    with pytest.raises(UsageError, match="may have 257 tokens, but a step has room for 256"):
        make_room(config, None)
    model.max_model_len = 256
    make_room(config, None)
