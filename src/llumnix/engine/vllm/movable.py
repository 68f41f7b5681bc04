"""What can move, and why not: the support table as code. What cannot move is served normally, pinned."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, SlidingWindowSpec
from vllm.v1.request import Request


def why_engine_pins(config: VllmConfig, kv_cache_config: KVCacheConfig) -> str:
    """Why no request of this engine can move, or an empty string."""
    model = config.model_config
    if config.speculative_config is not None:
        return "speculative decoding keeps draft state in the worker"
    if config.parallel_config.pipeline_parallel_size > 1:
        return "pipeline parallelism"
    if config.parallel_config.data_parallel_size > 1:
        return "the engine is itself data parallel"
    if config.kv_transfer_config is not None:
        return "a KV connector owns the blocks"
    if config.aux_output_config.enabled:
        return "auxiliary output, such as routed experts, is collected in the worker"
    if model.is_encoder_decoder:
        return "encoder-decoder models keep cross-attention state"
    if model.uses_mrope:
        return "M-RoPE positions live in the worker"
    if model.runner_type != "generate":
        return "pooling models finish in one step"
    kinds = {type(group.kv_cache_spec) for group in kv_cache_config.kv_cache_groups}
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        # Only caches to which tokens are appended: a state that is overwritten in place has no settled blocks.
        if not issubclass(kind, FullAttentionSpec | SlidingWindowSpec):
            return f"its KV cache has state of kind {kind.__name__}"
    return ""


def why_request_pinned(request: Request) -> str:
    """Why this request cannot move (now), or an empty string."""
    if request.pooling_params is not None:
        return "pooling request"
    if request.mm_features:
        return "multi-modal input"
    if request.prompt_embeds is not None or request.prompt_token_ids is None:
        return "prompt given as embeddings"
    if request.resumable:
        return "streaming input session"
    sampling: Any = request.sampling_params
    if sampling.prompt_logprobs is not None and request.num_output_tokens == 0:
        return "prompt logprobs are being collected"
    if request.kv_transfer_params is not None or request.ec_transfer_params is not None:
        return "a connector moves its cache"
    return ""
