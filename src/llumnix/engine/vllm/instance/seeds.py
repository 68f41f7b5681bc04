"""Where the random generator of a request with a seed stands after so many tokens: a replay draws on from there.

The V2 runner has no generators: what it draws follows from the seed and the position
(vllm/v1/worker/gpu/sample/gumbel.py), so there is nothing to bring back. The V1 runner keeps one for each request and
draws once for every token; how, depends on the sampler (vllm/v1/sample/ops/topk_topp_sampler.py):

* on CPUs, one integer (`forward_cpu`); drawing n at once leaves the generator as drawing n times one does;
* on GPUs, one row of exponentials (`random_sample`). A Philox generator counts what it gave in its offset, and
  vLLM itself counts on steps of four: it winds back by that where it throws a token away (`_bookkeeping_sync`).
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from vllm.sampling_params import SamplingParams, SamplingType

from llumnix.engine.vllm.versions import ONE_INTEGER

_PHILOX_STEP = 4

_SPECULATION = "what speculative decoding drew for it depends on its drafts"
_MANY_DRAWS = "its seeded random generator gave as many numbers for each token as there are words"
_LARGE_STEPS = "vLLM winds its seeded random generator back by less than it drew"
_UNKNOWN = "how this device draws with a seed is not known"


def why_seeds_are_lost(model_runner: Any, config: Any, device: torch.device) -> str:
    """Why a request with a seed cannot go on exactly where no copy of its generator is, or an empty string.

    `model_runner`, `config`: of a vLLM worker.
    """
    if config.speculative_config is not None:
        return _SPECULATION
    if not hasattr(model_runner, "requests"):  # V2
        return ""
    sampler = getattr(getattr(model_runner, "sampler", None), "topk_topp_sampler", None)
    if sampler is None:
        return ""  # draws nothing, as pooling models
    if device.type == "cpu":
        usual = sampler.forward.__name__ == "forward_cpu" and not sampler.use_fp64_gumbel
        return "" if usual and ONE_INTEGER else _MANY_DRAWS
    if device.type != "cuda":
        return _UNKNOWN
    kind = torch.float64 if sampler.use_fp64_gumbel else torch.float32
    return (
        "" if _philox_step(device, model_runner.model_config.get_vocab_size(), kind) == _PHILOX_STEP else _LARGE_STEPS
    )


def _philox_step(device: torch.device, words: int, kind: torch.dtype) -> int:
    """By how much the offset grows with a row of exponentials: by more than four where a device is too small for it."""
    generator = torch.Generator(device=device)
    generator.manual_seed(0)
    torch.empty(words, dtype=kind, device=device).exponential_(generator=generator)
    return generator.get_offset()


def has_generator(sampling: SamplingParams | None) -> TypeGuard[SamplingParams]:
    """Whether the V1 runner makes one for such a request (`_update_states` in vllm/v1/worker/gpu_model_runner.py)."""
    return sampling is not None and sampling.sampling_type == SamplingType.RANDOM_SEED


def generator_after(sampling: SamplingParams | None, tokens: int, device: torch.device) -> torch.Generator | None:
    """As the V1 runner makes it for a new request, after it has drawn for so many tokens; None for a request without a
    seed."""
    if not has_generator(sampling):
        return None
    assert sampling.seed is not None
    generator = torch.Generator(device=device)
    generator.manual_seed(sampling.seed)
    if device.type == "cpu":
        torch.randint(0, 2**31, (tokens,), generator=generator, dtype=torch.long)
    else:
        generator.set_offset(_PHILOX_STEP * tokens)
    return generator
