"""What vLLM's V1 runner, the one of CPUs, knows of a thinking budget that a request brings: its tokens, no more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm.v1.sample.thinking_budget_state")

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

START, THOUGHT, BUDGET, LENGTH = 50, 7, 4, 12


def said(end: list[int], moves_after: int | None = None) -> list[int]:
    """By a model that only thinks. A request that comes, from elsewhere or after it was preempted, is added anew."""
    output: list[int] = []
    for made in range(LENGTH):
        if made in (0, moves_after):
            config = SimpleNamespace(reasoning_start_token_ids=[START], reasoning_end_token_ids=end)
            holder = ThinkingBudgetStateHolder(config, 1, 0, torch.device("cpu"), False)  # type: ignore[arg-type]
            row = 0, SamplingParams(thinking_token_budget=BUDGET), [1, START], output
            holder.sync_batch(BatchUpdate(1, [], [row], []))
        holder.update_state([output], None)
        logits = torch.zeros(1, 100)
        logits[0, THOUGHT] = 1.0
        output.append(int(holder.apply_to_logits(logits, False, None).argmax()))
    return output


@pytest.mark.parametrize("end", [[60], [60, 61, 62]], ids=["a token", "several"])
def test_budget_is_kept_wherever_its_request_goes(end: list[int]) -> None:
    thoughts = [THOUGHT] * BUDGET
    whole = thoughts + end + [THOUGHT] * (LENGTH - BUDGET - len(end))
    before_and_after_the_end = [*range(1, BUDGET + 1), *range(BUDGET + len(end), LENGTH)]
    assert said(end) == whole
    assert [said(end, moves_after) for moves_after in before_and_after_the_end] == [whole] * (LENGTH - len(end))


def test_end_of_several_tokens_is_begun_anew_on_cpus() -> None:
    assert said([60, 61, 62], moves_after=BUDGET + 2)[BUDGET:-3] == [60, 61, 60, 61, 62]
