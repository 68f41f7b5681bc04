"""What a checkpoint is made from: Transformers' class, its configuration, and what else is to lie in the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BOS, EOS = 256, 257
"""Of the tiny model's byte tokenizer: below are the bytes, above what is special."""

VOCABULARY = 320
"""More than the tokenizer has, as real models do; a multiple of 64 for kernels that want one."""

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
}

HEAD_SIZE = 32  # the smallest that vLLM has CPU kernels for

Tensors = dict[str, Any]


def as_drawn(_tensors: Tensors, _config: dict[str, Any]) -> None:
    """Nothing to add."""


@dataclass(frozen=True, slots=True)
class Recipe:
    model: str
    """The name of Transformers' class."""
    config: Callable[[Any], Any]
    """Given the module `transformers`, the model's configuration."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """JSON files beside it, by name: how images are prepared."""
    special: tuple[str, ...] = ()
    """Tokens that stand for images and what is around them; the first has the number EOS + 1."""
    named_special: dict[str, str] = field(default_factory=dict)
    """Those that the processor asks the tokenizer for by a name."""
    chat_template: str = ""
    """If the tiny model's does not do."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters, each in a folder of its name beside the model's files."""
    scale: float = 0.1
    """Of the weights: so large that greedy output wanders instead of repeating itself."""
    finish: Callable[[Tensors, dict[str, Any]], None] = as_drawn
    """Changes tensors and configuration in place, where vLLM knows more of a model than Transformers."""

    def token(self, word: str) -> int:
        return EOS + 1 + self.special.index(word)
