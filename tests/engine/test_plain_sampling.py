"""Log probabilities have the ranks that vLLM gives them, tokens are drawn, and nothing is compiled for it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import torch
from torch._dynamo.utils import counters
from vllm.v1.sample import sampler
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.sample.ops.logprobs import batched_count_greater_than

from llumnix.engine.vllm.instance.plain_sampling import sample_plainly


@pytest.fixture(autouse=True)
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "batched_count_greater_than", batched_count_greater_than)
    monkeypatch.setattr(topk_topp_sampler, "compiled_random_sample", topk_topp_sampler.compiled_random_sample)
    sample_plainly()
    sample_plainly()  # a worker may be opened more than once in a process


def test_ranks_are_counted_at_once() -> None:
    compiled = dict(counters["stats"])
    logprobs = torch.tensor([[-3.0, -1.0, -2.0], [-1.0, -1.0, -4.0]])
    gathered = sampler.Sampler.gather_logprobs(logprobs, 1, torch.tensor([2, 1]))
    assert gathered.selected_token_ranks.tolist() == [2, 2]
    assert dict(counters["stats"]) == compiled


def test_tokens_are_drawn_at_once_as_often_as_they_are_likely() -> None:
    """As vLLM 0.31 draws them without a seed."""
    compiled = dict(counters["stats"])
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.7]])).expand(20_000, 3)
    counts = torch.bincount(topk_topp_sampler.compiled_random_sample(logits), minlength=3)
    assert torch.allclose(counts / 20_000, torch.tensor([0.1, 0.2, 0.7]), atol=0.02)
    assert dict(counters["stats"]) == compiled


def test_vllm_that_draws_without_a_compiler_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(topk_topp_sampler, "compiled_random_sample")
    sample_plainly()
    assert not hasattr(topk_topp_sampler, "compiled_random_sample")
