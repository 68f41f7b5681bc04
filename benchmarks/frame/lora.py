"""LoRA adapters of the tiny model, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from llumnix import tiny_model

RANK = 8


def make_adapter(folder: Path, seed: int) -> Path:
    """In the format of the `peft` package, strong enough that the output changes."""
    model = json.loads((tiny_model.ensure() / "config.json").read_text())
    hidden = model["hidden_size"]
    head = hidden // model["num_attention_heads"]
    rows = {"q_proj": hidden, "v_proj": head * model["num_key_value_heads"]}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(model["num_hidden_layers"]):
        for name, size in rows.items():
            where = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{where}.lora_A.weight"] = torch.randn(RANK, hidden, generator=generator) * 0.1
            weights[f"{where}.lora_B.weight"] = torch.randn(size, RANK, generator=generator) * 0.1
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": sorted(rows), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    return folder
