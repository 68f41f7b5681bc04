"""Random weights under which a model says varied things: one wrong token is then seen, and stays seen."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from frame.lora import make_adapter

from families.recipes import EOS, Recipe
from llumnix.tiny_model import byte_tokenizer

_SEED = 1
_HEAD_SCALE = 0.3


def make(recipe: Recipe, folder: Path) -> None:
    """Writes the checkpoint. Needs torch and transformers."""
    # By name, because their own types differ from version to version and nothing here depends on them.
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    model = getattr(transformers, recipe.model)(recipe.config(transformers)).to(torch.float32)
    _draw(torch, model, recipe.scale)
    model.save_pretrained(folder)
    _finish(recipe, folder)
    for name, content in recipe.files.items():
        (folder / name).write_text(json.dumps(content))
    tokenizer = byte_tokenizer(transformers, recipe.special)
    for name, word in recipe.named_special.items():
        tokenizer.init_kwargs[name] = word
    tokenizer.chat_template = recipe.chat_template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    for number, name in enumerate(recipe.adapters, start=1):
        make_adapter(folder / name, seed=number, model=folder)


def _draw(torch: Any, model: Any, scale: float) -> None:
    """By the parameters' names: some have a meaning that plain noise would not give them."""
    generator = torch.Generator().manual_seed(_SEED)

    def uniform(parameter: Any, low: float, high: float) -> None:
        parameter.copy_(torch.empty_like(parameter).uniform_(low, high, generator=generator))

    head = "embed_tokens" if model.config.tie_word_embeddings else "lm_head"
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            lower = name.lower()
            if lower.endswith("a_log"):  # how fast a state fades
                uniform(parameter, 0.0, 1.0)
            elif lower.endswith("dt_bias"):
                uniform(parameter, -3.0, -1.0)
            elif lower.endswith(".d"):
                uniform(parameter, 0.5, 1.0)
            elif lower.endswith("bias"):
                parameter.zero_()
            elif "norm" in lower and parameter.ndim == 1:
                parameter.fill_(1.0)
            elif parameter.ndim == 1:
                uniform(parameter, 0.1, 0.9)
            else:
                spread = _HEAD_SCALE if head in lower else scale
                parameter.copy_(torch.empty_like(parameter).normal_(0.0, spread, generator=generator))
            if head in lower:
                parameter[EOS - 1 :] = 0.0  # what is special is not said by chance


def _finish(recipe: Recipe, folder: Path) -> None:
    torch_files: Any = import_module("safetensors.torch")
    weights, config_json = folder / "model.safetensors", folder / "config.json"
    tensors, config = torch_files.load_file(weights), json.loads(config_json.read_text())
    recipe.finish(tensors, config)
    torch_files.save_file(tensors, weights, metadata={"format": "pt"})
    config_json.write_text(json.dumps(config, indent=1))
