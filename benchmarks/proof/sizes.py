"""Models of the sizes that people serve, without a file of weights: a configuration, and the tiny model's tokenizer."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frame.models import vllm_plugin

from llumnix import tiny_model

MODEL_LEN = 10_304
"""The window: 8,192 tokens, and room to move while they become more."""
_SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 32,
}
"""Instead, on a CPU. With fewer layers, what stands far back reaches too few tokens to be seen."""
_COMMON: dict[str, Any] = {
    "max_position_embeddings": 16_384,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
}

MODELS: dict[str, dict[str, Any]] = {
    "llama-7b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rope_theta": 10_000.0,
    },
    "qwen3-8b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1_000_000.0,
        "attention_bias": False,
    },
}


@dataclass(frozen=True, slots=True)
class ModelSize:
    name: str
    on_gpu: bool
    """Else it is that model made small."""

    @property
    def config(self) -> dict[str, Any]:
        config = _COMMON | MODELS[self.name]
        if self.on_gpu:
            return config
        shared = config["num_attention_heads"] // config["num_key_value_heads"]
        return config | _SMALL | {"num_key_value_heads": max(1, _SMALL["num_attention_heads"] // shared)}

    @property
    def token_bytes(self) -> int:
        """Of KV cache."""
        config = self.config
        values: int = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
        return values * (2 if self.on_gpu else 4)

    @property
    def block_tokens(self) -> int:
        return 16 if self.on_gpu else 32

    @property
    def limits(self) -> tuple[str, ...]:
        """Flags for the server, and for `llumnix profile`, which cannot see them: what vLLM takes for a device depends
        on the device, on an H200 so many tokens a step."""
        return "--max-num-seqs", "64", "--max-num-batched-tokens", "8192" if self.on_gpu else "2048"

    @contextmanager
    def engine_flags(self) -> Iterator[list[str]]:
        """Flags of `vllm serve`, model first, for two instances: on one GPU, or on this CPU."""
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as folder, vllm_plugin("_seeded"):
            self._write(Path(folder))
            here = ["--dtype", "bfloat16", "--instances-per-gpu", "2"]
            if not self.on_gpu:
                here = ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(256 << 20)]
            yield [
                *(folder, "--served-model-name", "tiny", "--load-format", "seeded"),
                *("--block-size", str(self.block_tokens), "--max-model-len", str(MODEL_LEN), *self.limits),
                *here,
            ]

    def _write(self, folder: Path) -> None:
        """A tokenizer with as many words as the model has: a byte each, and then words that no text is cut into."""
        for path in tiny_model.ensure().glob("*token*"):
            shutil.copy(path, folder)
        (folder / "config.json").write_text(json.dumps(self.config))
        tokenizer_json = folder / "tokenizer.json"
        tokenizer = json.loads(tokenizer_json.read_text())
        words = tokenizer["model"]["vocab"]
        words |= {f"~{number}": number for number in range(len(words), self.config["vocab_size"])}
        tokenizer_json.write_text(json.dumps(tokenizer))
