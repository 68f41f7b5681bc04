"""The request with which an engine that generates is warmed up."""

from __future__ import annotations

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest


def warm_up_request() -> EngineCoreRequest:
    """A short one, start to end."""
    return EngineCoreRequest(
        request_id="llumnix-warm-up",
        prompt_token_ids=[1, 2, 3, 4],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
