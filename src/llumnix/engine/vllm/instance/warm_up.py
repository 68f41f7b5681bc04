"""The requests with which an engine that generates is warmed up."""

from __future__ import annotations

from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

_GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
_DRAWN = SamplingParams(max_tokens=2, top_k=20, top_p=0.95, ignore_eos=True)
"""On a GPU the kernels for this are compiled when they are first needed, in a minute or more (FlashInfer's, by nvcc):
an engine would stand still. Without a seed, as with one others are taken."""


def warm_up_requests() -> list[EngineCoreRequest]:
    """Short ones, each to be computed alone, start to end."""
    return [_request(how) for how in (_GREEDY, *([_DRAWN] if current_platform.is_cuda() else []))]


def _request(how: SamplingParams) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id="llumnix-warm-up",
        prompt_token_ids=[1, 2, 3, 4],
        mm_features=None,
        sampling_params=how.clone(),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
