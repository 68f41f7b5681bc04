"""What can move, and why not: the support table as code. What cannot move is served normally, pinned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
    iter_layer_specs,
)
from vllm.v1.request import Request

_DRAFTERS_BEGIN_ANYWHERE = frozenset({"ngram", "ngram_gpu", "suffix", "medusa"})
"""Make drafts of the tokens, or of the last step's hidden states: nothing is left behind."""

_DRAFTERS_WITH_A_CACHE = frozenset({"draft_model", "eagle", "eagle3", "mtp", "dflash", "dspark"})
"""Their KV is in the blocks, as that of further layers (`VllmConfig.num_lookahead_tokens`)."""


def why_engine_pins(config: VllmConfig, kv_cache_config: KVCacheConfig) -> str:
    """Why no request of this engine can move, or an empty string."""
    specs = [spec for group in kv_cache_config.kv_cache_groups for spec in iter_layer_specs(group.kv_cache_spec)]
    return (
        next((why for pins, why in _ways_to_run(config) if pins), "")
        or _why_cache_stays(specs)
        or _why_states_of_drafts_stay(config, specs)
    )


def _ways_to_run(config: VllmConfig) -> tuple[tuple[bool, str], ...]:
    model, parallel = config.model_config, config.parallel_config
    spread = parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size
    return (
        (not _drafts_can_be_dropped(config), "its drafter may keep a state of its own"),
        (parallel.data_parallel_size > 1, "the engine is itself data parallel"),
        (spread > 1, "context parallelism spreads a block over several workers"),
        (config.kv_transfer_config is not None, "a KV connector owns the blocks"),
        (config.ec_transfer_config is not None, "a connector owns the outputs of the encoder"),
        (config.aux_output_config.enabled, "auxiliary output, such as routed experts, is collected in the worker"),
        (model.is_encoder_decoder, "encoder-decoder models keep cross-attention state"),
        (_prunes_video(model), "video pruning makes positions of embeddings that only the worker has"),
        (model.runner_type != "generate", "pooling models finish in one step"),
        (model.enable_sleep_mode, "sleep mode takes the memory away that others read from"),
        (config.cache_config.use_replayssm, "ReplaySSM keeps in the worker from which token on a state is replayed"),
        (config.attention_config.hisparse_config is not None, "HiSparse keeps a part of the KV cache on the host"),
    )


def _drafts_can_be_dropped(config: VllmConfig) -> bool:
    """Whether a request can go without its pending drafts: where it arrives, vLLM gives it placeholders that are always
    rejected, and drafts anew from the next token on."""
    speculative = config.speculative_config
    return speculative is None or speculative.method in _DRAFTERS_BEGIN_ANYWHERE | _DRAFTERS_WITH_A_CACHE


def _prunes_video(model: ModelConfig) -> bool:
    """Relies on `MultiModalConfig.is_multimodal_pruning_enabled` (vllm/config/multimodal.py)."""
    return model.multimodal_config is not None and model.multimodal_config.is_multimodal_pruning_enabled()


def _why_cache_stays(specs: Sequence[KVCacheSpec]) -> str:
    if not specs:
        return "it has no KV cache"
    return next((f"its KV cache has state of kind {kind}" for kind in sorted(map(_unknown_kind, specs)) if kind), "")


def _unknown_kind(spec: KVCacheSpec) -> str:
    """Its name, if it is neither a cache to which tokens are appended nor a state of which one block per request is
    valid (see state_blocks.py)."""
    if isinstance(spec, FullAttentionSpec | SlidingWindowSpec | ChunkedLocalAttentionSpec):
        return ""
    if isinstance(spec, MambaSpec) and spec.mamba_cache_mode in ("none", "align"):
        return ""
    return type(spec).__name__


def _why_states_of_drafts_stay(config: VllmConfig, specs: Sequence[KVCacheSpec]) -> str:
    """A request whose states follow its drafts leaves after a step without right ones (last_steps.py)."""
    drafted = [spec for spec in specs if isinstance(spec, MambaSpec) and spec.num_speculative_blocks]
    if any(spec.mamba_cache_mode == "align" for spec in drafted):
        return "with prefix caching, states after drafts are moved about between steps"
    if drafted and config.scheduler_config.async_scheduling and not config.use_v2_model_runner:
        return "with async scheduling, vLLM's V1 runner cannot be asked for a step without drafts"
    return ""


def why_request_pinned(request: Request, drafts: bool) -> str:
    """Why this request cannot move (now), or an empty string. `drafts`: its engine makes some."""
    if request.pooling_params is not None:
        return "pooling request"
    if request.resumable:
        return "streaming input session"
    sampling: Any = request.sampling_params
    if drafts and sampling.seed is not None and sampling.temperature > 0:
        return "what its seed draws depends on its drafts, which stay behind"
    return ""
