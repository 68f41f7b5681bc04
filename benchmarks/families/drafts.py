"""Models that guess what others will say, so near to them that a part of the guesses is right."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

from families.hybrids import HYBRIDS
from families.recipes import SHAPE, Recipe, Tensors
from families.text import TEXT

_NOISE = 0.003
"""Beside weights of 0.1: enough to guess wrong now and then."""

_EMBEDDINGS = "model.embed_tokens.weight"
_OUT = ("o_proj.weight", "down_proj.weight")
_QUIET = 0.02
"""A layer that guesses adds so much of what it would: the last token itself decides nearly alone."""

_LAST = f"model.layers.{SHAPE['num_hidden_layers'] - 1}."


def _with_noise(tensors: Tensors, _config: dict[str, Any]) -> None:
    torch: Any = import_module("torch")
    generator = torch.Generator().manual_seed(2)
    for _, tensor in sorted(tensors.items()):
        tensor += torch.empty_like(tensor).normal_(0.0, _NOISE, generator=generator)


def _leaning(times: float) -> Any:
    """Embeddings so many times as large: what comes next depends on the last token, and less on all others."""

    def lean(tensors: Tensors, _config: dict[str, Any]) -> None:
        tensors[_EMBEDDINGS] *= times

    return lean


def _looks_at_the_token(width: int) -> Any:
    """Of a token's embedding and the state before it: the first."""
    torch: Any = import_module("torch")
    return torch.cat((torch.eye(width), torch.zeros(width, width)), dim=1)


def _quiet_layer(tensors: Tensors, prefix: str) -> Tensors:
    """A copy of one, by what its tensors are called within it."""
    return {
        name.removeprefix(prefix): tensor * (_QUIET if name.endswith(_OUT) else 1.0)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _is_a_head(tensors: Tensors, config: dict[str, Any]) -> None:
    """One layer behind the other model's last one, whose embeddings and output layer it shares."""
    layer = _quiet_layer(tensors, "model.layers.0.")
    del layer["input_layernorm.weight"]
    tensors.clear()
    tensors.update({f"layers.0.{name}": tensor for name, tensor in layer.items()})
    tensors["fc.weight"] = _looks_at_the_token(config["hidden_size"])


def _also_predicts_two_more(tensors: Tensors, config: dict[str, Any]) -> None:
    """Qwen's way: a model of one layer beside it."""
    torch: Any = import_module("torch")
    _leaning(100.0)(tensors, config)
    width = config["hidden_size"]
    tensors |= {f"mtp.layers.0.{name}": tensor for name, tensor in _quiet_layer(tensors, _LAST).items()}
    norms = ("norm.weight", "pre_fc_norm_hidden.weight", "pre_fc_norm_embedding.weight")
    tensors |= {f"mtp.{name}": torch.ones(width) for name in norms}
    tensors["mtp.fc.weight"] = _looks_at_the_token(width)
    config["num_nextn_predict_layers"] = 1


DRAFTS = {
    "llama-draft": replace(TEXT["llama"], finish=_with_noise),
    "llama-leaning": replace(TEXT["llama"], finish=_leaning(20.0)),
    "llama-eagle": Recipe(
        "LlamaForCausalLM",
        lambda transformers: transformers.LlamaConfig(**SHAPE | {"num_hidden_layers": 1}),
        finish=_is_a_head,
    ),
    "qwen3-next-mtp": replace(HYBRIDS["qwen3-next"], finish=_also_predicts_two_more),
}
