"""Models some of whose layers keep one state that every token overwrites, beside others that attend."""

from __future__ import annotations

from typing import Any

from families.recipes import HEAD_SIZE, SHAPE, Recipe

_STATE: dict[str, Any] = {"mamba_n_groups": 1, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_chunk_size": 64}
_HEADS: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 32}


def _granite(transformers: Any) -> Any:
    return transformers.GraniteMoeHybridConfig(
        **SHAPE,
        **_STATE,
        **_HEADS,
        mamba_expand=2,
        layer_types=["mamba", "attention", "mamba", "mamba"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=128,
        position_embedding_type="rope",
    )


def _falcon(transformers: Any) -> Any:
    return transformers.FalconH1Config(**SHAPE, **_STATE, **_HEADS, head_dim=HEAD_SIZE, mamba_d_ssm=256)


def _nemotron(transformers: Any) -> Any:
    return transformers.NemotronHConfig(
        **{name: value for name, value in SHAPE.items() if name != "num_hidden_layers"},
        hybrid_override_pattern="M-*M",
        head_dim=HEAD_SIZE,
        ssm_state_size=64,
        mamba_num_heads=8,
        mamba_head_dim=32,
        n_groups=1,
        conv_kernel=4,
        chunk_size=64,
    )


def _lfm2(transformers: Any) -> Any:
    """Its output layer is its embedding: vLLM has no other."""
    return transformers.Lfm2Config(
        **{name: value for name, value in SHAPE.items() if name != "tie_word_embeddings"},
        layer_types=["conv", "full_attention", "conv", "conv"],
        conv_L_cache=3,
        **dict.fromkeys(("block_dim", "conv_dim", "conv_dim_out"), SHAPE["hidden_size"]),
        block_auto_adjust_ff_dim=False,
    )


def _qwen3_next(transformers: Any) -> Any:
    return transformers.Qwen3NextConfig(
        **SHAPE,
        head_dim=HEAD_SIZE,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        linear_conv_kernel_dim=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )


HYBRIDS = {
    "granite4": Recipe("GraniteMoeHybridForCausalLM", _granite),
    "falcon-h1": Recipe("FalconH1ForCausalLM", _falcon),
    "nemotron-h": Recipe("NemotronHForCausalLM", _nemotron),
    "lfm2": Recipe("Lfm2ForCausalLM", _lfm2),
    "qwen3-next": Recipe("Qwen3NextForCausalLM", _qwen3_next),
}
