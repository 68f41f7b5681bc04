"""LoRA adapters of the tiny model and its like."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from llumnix import tiny_model

RANK = 8


def make_adapter(folder: Path, seed: int, model: Path | None = None) -> Path:
    """In the format of the `peft` package, strong enough that the output changes. `model`: the folder of one that is
    built like the tiny model, which is meant if there is none."""
    # By name, because their own types differ from version to version and nothing here depends on them.
    torch: Any = import_module("torch")
    torch_files: Any = import_module("safetensors.torch")
    config = json.loads(((model or tiny_model.ensure()) / "config.json").read_text())
    hidden = config["hidden_size"]
    head = hidden // config["num_attention_heads"]
    rows = {"q_proj": hidden, "v_proj": head * config["num_key_value_heads"]}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, size in rows.items():
            where = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{where}.lora_A.weight"] = torch.randn(RANK, hidden, generator=generator) * 0.1
            weights[f"{where}.lora_B.weight"] = torch.randn(size, RANK, generator=generator) * 0.1
    folder.mkdir()
    torch_files.save_file(weights, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": sorted(rows), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**about, "task_type": "CAUSAL_LM"}))
    return folder
