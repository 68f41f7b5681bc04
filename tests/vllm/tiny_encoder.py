"""A tiny random BERT, made from a seed: a model without a KV cache, whose requests end in one step."""

from __future__ import annotations

import string
import subprocess
import sys
from pathlib import Path

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make(folder: Path) -> Path:
    """In a process of its own: PyTorch and its threads are not for a test."""
    subprocess.run([sys.executable, __file__, str(folder)], check=True, capture_output=True)
    return folder


def _make_here(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: n for n, word in enumerate((*MARKS, *string.ascii_lowercase))}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)  # type: ignore[no-untyped-call]
    torch.manual_seed(1)
    shape = BertConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    BertModel(shape).save_pretrained(folder)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    _make_here(Path(sys.argv[1]))
