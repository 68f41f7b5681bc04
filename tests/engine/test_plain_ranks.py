"""Log probabilities have the ranks that vLLM gives them, and nothing is compiled for it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import torch
from torch._dynamo.utils import counters
from vllm.v1.sample import sampler
from vllm.v1.sample.ops.logprobs import batched_count_greater_than

from llumnix.engine.vllm.instance.plain_ranks import count_plainly


def test_ranks_are_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "batched_count_greater_than", batched_count_greater_than)
    count_plainly()
    count_plainly()  # a worker may be opened more than once in a process
    compiled = dict(counters["stats"])
    logprobs = torch.tensor([[-3.0, -1.0, -2.0], [-1.0, -1.0, -4.0]])
    gathered = sampler.Sampler.gather_logprobs(logprobs, 1, torch.tensor([2, 1]))
    assert gathered.selected_token_ranks.tolist() == [2, 2]
    assert dict(counters["stats"]) == compiled
