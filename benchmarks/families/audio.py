"""A model that listens: an encoder of sounds before a model of text."""

from __future__ import annotations

from typing import Any

from families.recipes import EOS, SHAPE, Recipe, Tensors


def _qwen2_audio(transformers: Any) -> Any:
    encoder = transformers.Qwen2AudioEncoderConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=128
    )
    return transformers.Qwen2AudioConfig(
        audio_config=encoder,
        text_config=transformers.Qwen2Config(**SHAPE),
        audio_token_index=EOS + 1,
        tie_word_embeddings=False,
    )


def _as_published(tensors: Tensors, _config: dict[str, Any]) -> None:
    """Transformers 5 writes one word more before the text model's names than it reads, and vLLM."""
    for name in [name for name in tensors if name.startswith("language_model.model.model.")]:
        tensors[name.replace(".model.model.", ".model.")] = tensors.pop(name)


AUDIO = {
    "qwen2-audio": Recipe(
        "Qwen2AudioForConditionalGeneration",
        _qwen2_audio,
        {
            "preprocessor_config.json": {
                "feature_extractor_type": "WhisperFeatureExtractor",
                "processor_class": "Qwen2AudioProcessor",
                "feature_size": 128,
            }
        },
        special=("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
        finish=_as_published,
    )
}
