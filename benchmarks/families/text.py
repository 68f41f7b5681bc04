"""Models of text whose caches are only appended to: dense, windowed, chunked, experts, latent attention."""

from __future__ import annotations

from typing import Any

from frame.kinds import ADAPTERS

from families.recipes import HEAD_SIZE, SHAPE, Recipe

WINDOW = 96
"""Tokens. Streams of some hundred leave it several times."""

_EVERY_FOURTH_FULL = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]


def _llama(transformers: Any) -> Any:
    return transformers.LlamaConfig(**SHAPE)


def _gemma(transformers: Any) -> Any:
    return transformers.Gemma3TextConfig(
        **SHAPE,
        head_dim=HEAD_SIZE,
        query_pre_attn_scalar=HEAD_SIZE,
        sliding_window=WINDOW,
        layer_types=_EVERY_FOURTH_FULL,
    )


def _llama4(transformers: Any) -> Any:
    return transformers.Llama4TextConfig(
        **SHAPE,
        head_dim=HEAD_SIZE,
        intermediate_size_mlp=256,
        attention_chunk_size=128,
        no_rope_layers=[1, 1, 1, 0],
        use_qk_norm=True,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        moe_layers=[1, 3],
    )


def _gpt_oss(transformers: Any) -> Any:
    return transformers.GptOssConfig(
        **SHAPE,
        head_dim=HEAD_SIZE,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )


def _experts(transformers: Any) -> Any:
    return transformers.Qwen3MoeConfig(
        **SHAPE,
        head_dim=HEAD_SIZE,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        decoder_sparse_step=1,
        norm_topk_prob=True,
        mlp_only_layers=[],
    )


LATENT: dict[str, Any] = {
    **SHAPE,
    "num_key_value_heads": 4,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "topk_group": 1,
}
"""Multi-head latent attention has one size of cache in all published models, and kernels for that one."""


def _deepseek_v2(transformers: Any) -> Any:
    return transformers.DeepseekV2Config(
        **LATENT, q_lora_rank=None, n_routed_experts=4, n_group=1, topk_method="greedy", moe_layer_freq=1
    )


def _deepseek_v3(transformers: Any) -> Any:
    return transformers.DeepseekV3Config(
        **LATENT, q_lora_rank=64, n_routed_experts=8, n_group=2, topk_method="noaux_tc", scoring_func="sigmoid"
    )


TEXT = {
    "llama": Recipe("LlamaForCausalLM", _llama),
    "llama-adapted": Recipe("LlamaForCausalLM", _llama, adapters=ADAPTERS),
    "gemma3": Recipe("Gemma3ForCausalLM", _gemma),
    "llama4": Recipe("Llama4ForCausalLM", _llama4),
    "gpt-oss": Recipe("GptOssForCausalLM", _gpt_oss),
    "qwen3-moe": Recipe("Qwen3MoeForCausalLM", _experts, scale=0.2),
    "deepseek-v2": Recipe("DeepseekV2ForCausalLM", _deepseek_v2, scale=0.2),
    "deepseek-v3": Recipe("DeepseekV3ForCausalLM", _deepseek_v3, scale=0.2),
}
