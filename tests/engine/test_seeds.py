"""A seeded request goes on elsewhere as its dead owner would have drawn: with vLLM's own sampler, on the V1 runner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from llumnix.engine.vllm.instance import seeds
from llumnix.engine.vllm.instance.seeds import generator_after, why_seeds_are_lost
from llumnix.engine.vllm.instance.worker import WorkerExtension
from llumnix.engine.vllm.versions import ONE_INTEGER

CPU = torch.device("cpu")
SEEDED = SamplingParams(temperature=1.0, seed=11)
WORDS = 50

current_platform.import_kernels()  # as vLLM's worker does


def drawn(sampler: TopKTopPSampler, generator: torch.Generator, first: int, last: int, top: bool) -> list[int]:
    """Tokens from the first to the last, each from logits of its own, beside a row that has no seed."""
    tokens = []
    for position in range(first, last):
        row = torch.randn(WORDS, generator=torch.Generator().manual_seed(position))
        logits = torch.stack([torch.randn(WORDS), row])
        k, p = (torch.tensor([40, 20]), torch.tensor([0.9, 0.8])) if top else (None, None)
        chosen, _ = sampler.forward_cpu(logits, {1: generator}, k, p)
        tokens.append(int(chosen[1]))
    return tokens


@pytest.mark.skipif(not ONE_INTEGER, reason="vLLM 0.31 draws otherwise, and seeds_lost says so")
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 16, 17, 59])
def test_stream_that_goes_on_with_a_new_generator_says_the_same(tokens: int, top: bool) -> None:
    sampler = TopKTopPSampler()
    whole = generator_after(SEEDED, 0, CPU)
    assert whole is not None
    undisturbed = drawn(sampler, whole, 0, 60, top)
    went_on = generator_after(SEEDED, tokens, CPU)
    assert went_on is not None
    assert drawn(sampler, went_on, tokens, 60, top) == undisturbed[tokens:]


@pytest.mark.parametrize("sampling", [None, SamplingParams(temperature=1.0), SamplingParams(temperature=0.0, seed=1)])
def test_request_that_needs_no_generator_gets_none(sampling: SamplingParams | None) -> None:
    assert generator_after(sampling, 5, CPU) is None


def runner(forward: str = "forward_cpu", fp64: bool = False) -> Any:
    sampler = TopKTopPSampler(use_fp64_gumbel=fp64)
    sampler.forward = getattr(sampler, forward)
    config = SimpleNamespace(get_vocab_size=lambda: WORDS)
    return SimpleNamespace(requests={}, sampler=SimpleNamespace(topk_topp_sampler=sampler), model_config=config)


PLAIN, DRAFTS = SimpleNamespace(speculative_config=None), SimpleNamespace(speculative_config=object())


@pytest.mark.parametrize(
    ("model_runner", "config", "words"),
    [
        (runner(), PLAIN, "" if ONE_INTEGER else "as many numbers for each token as there are words"),
        (runner(), DRAFTS, "drafts"),
        (runner("forward_native"), PLAIN, "as many numbers for each token as there are words"),
        (runner(fp64=True), PLAIN, "as many numbers for each token as there are words"),
        (SimpleNamespace(), PLAIN, ""),  # V2
        (SimpleNamespace(), DRAFTS, "drafts"),
        (SimpleNamespace(requests={}), PLAIN, ""),  # pooling
    ],
)
def test_where_draws_cannot_be_counted_it_is_said(model_runner: Any, config: Any, words: str) -> None:
    why = why_seeds_are_lost(model_runner, config, CPU)
    assert bool(why) == bool(words)
    assert words in why


@pytest.mark.parametrize(("step", "words"), [(4, ""), (8, "winds its seeded random generator back")])
def test_on_a_gpu_vllms_own_step_is_what_counts(monkeypatch: pytest.MonkeyPatch, step: int, words: str) -> None:
    monkeypatch.setattr(seeds, "_philox_step", lambda *_: step)
    why = why_seeds_are_lost(runner("forward_native"), PLAIN, torch.device("cuda"))
    assert bool(why) == bool(words)
    assert words in why


def test_other_devices_are_not_guessed_at() -> None:
    assert "is not known" in why_seeds_are_lost(runner("forward_native"), PLAIN, torch.device("xpu"))


def test_worker_makes_the_generator_anew_or_takes_the_one_that_is_handed_over() -> None:
    worker = WorkerExtension()
    worker.device, worker._llumnix_media = CPU, {}
    worker.model_runner = SimpleNamespace(
        requests={}, kv_cache_config=SimpleNamespace(kv_cache_groups=[0]), uses_mrope=False
    )
    asked = {"prompt_token_ids": [1], "sampling_params": SEEDED, "lora_request": None, "num_computed_tokens": 0}
    asked |= {"output_token_ids": [5, 6, 7], "drawn_tokens": 5}
    handed = generator_after(SEEDED, 4, CPU)
    assert handed is not None
    worker.llumnix_install(asked | {"id": "anew", "sampler_state": None})
    worker.llumnix_install(asked | {"id": "handed", "sampler_state": handed.get_state().numpy().tobytes()})
    states = {name: state.generator.get_state() for name, state in worker.model_runner.requests.items()}
    expected = generator_after(SEEDED, 5, CPU)
    assert expected is not None
    assert torch.equal(states["anew"], expected.get_state())
    assert torch.equal(states["handed"], handed.get_state())
