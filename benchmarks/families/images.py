"""Models that look at images: an encoder before a model of text, and how an image becomes tokens."""

from __future__ import annotations

from typing import Any

from families.recipes import HEAD_SIZE, SHAPE, Recipe, Tensors
from families.text import WINDOW

_QWEN_SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_SECTIONS = [4, 6, 6]  # of half a head: how much of it says time, height, width


def _qwen_tokens(first: int) -> dict[str, int]:
    start, end, image, video = range(first, first + 4)
    return {
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "image_token_id": image,
        "video_token_id": video,
    }


def _qwen_files(model: str, patch: int) -> dict[str, dict[str, Any]]:
    side = 2 * patch  # of what becomes one token
    how: dict[str, Any] = {
        "size": {"shortest_edge": 4 * side * side, "longest_edge": 64 * side * side},
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "processor_class": f"{model}Processor",
    }
    return {
        "preprocessor_config.json": how | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": how | {"video_processor_type": f"{model}VideoProcessor"},
    }


def _qwen2_vl(transformers: Any) -> Any:
    text = {**SHAPE, "rope_scaling": {"type": "mrope", "mrope_section": _QWEN_SECTIONS}}
    vision = {
        "depth": 2,
        "embed_dim": 64,
        "num_heads": 2,
        "hidden_size": SHAPE["hidden_size"],
        "patch_size": 14,
        "mlp_ratio": 2,
    }
    return transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **_qwen_tokens(258)
    )


def _qwen3_vl(transformers: Any) -> Any:
    text = {
        **SHAPE,
        "head_dim": HEAD_SIZE,
        "rope_scaling": {"rope_type": "default", "mrope_section": _QWEN_SECTIONS, "mrope_interleaved": True},
        "rope_theta": 10000.0,
    }
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": SHAPE["hidden_size"],
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return transformers.Qwen3VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **_qwen_tokens(258)
    )


_SQUARE = {"height": 56, "width": 56}
_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


def _llava(transformers: Any) -> Any:
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SHAPE),
        vision_config=transformers.CLIPVisionConfig(**_TOWER, projection_dim=64),
        image_token_index=258,
        image_seq_length=16,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


_LLAVA_FILES: dict[str, dict[str, Any]] = {
    "preprocessor_config.json": {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": 56},
        "crop_size": _SQUARE,
    },
    "processor_config.json": {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": 14,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    },
}


def _gemma(transformers: Any) -> Any:
    text = {
        **SHAPE,
        "head_dim": HEAD_SIZE,
        "query_pre_attn_scalar": HEAD_SIZE,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    }
    return transformers.Gemma3Config(
        text_config=text,
        vision_config=_TOWER,
        mm_tokens_per_image=4,
        boi_token_index=258,
        eoi_token_index=259,
        image_token_index=260,
        tie_word_embeddings=False,
    )


_GEMMA_FILES: dict[str, dict[str, Any]] = {
    "preprocessor_config.json": {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "size": _SQUARE,
        "image_seq_length": 4,
    },
    "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
}
_GEMMA_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ message['role'] }}: "
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] }}"
    "{%- endfor -%}{%- endif -%}{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}assistant:{%- endif -%}"
)
"""Puts nothing between an image and what is said of it, as the published one does: vLLM takes a line feed there and the
two that end an image for one token, and then does not find the image."""
_GEMMA_NAMES = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}


def _as_published(tensors: Tensors, _config: dict[str, Any]) -> None:
    """Transformers' own name for the encoder has one word less than checkpoints that people have."""
    for name in [name for name in tensors if name.startswith("vision_tower.")]:
        tensors[name.replace("vision_tower.", "vision_tower.vision_model.")] = tensors.pop(name)


IMAGES = {
    "qwen2-vl": Recipe("Qwen2VLForConditionalGeneration", _qwen2_vl, _qwen_files("Qwen2VL", 14), special=_QWEN_SPECIAL),
    "qwen3-vl": Recipe("Qwen3VLForConditionalGeneration", _qwen3_vl, _qwen_files("Qwen3VL", 16), special=_QWEN_SPECIAL),
    "llava": Recipe(
        "LlavaForConditionalGeneration",
        _llava,
        _LLAVA_FILES,
        special=("<image>",),
        named_special={"image_token": "<image>"},
        finish=_as_published,
    ),
    "gemma3-vision": Recipe(
        "Gemma3ForConditionalGeneration",
        _gemma,
        _GEMMA_FILES,
        special=(*_GEMMA_NAMES.values(), "\n", "\n\n", "\n\n\n", "\n\n\n\n"),  # vLLM looks the last four up
        named_special=_GEMMA_NAMES,
        chat_template=_GEMMA_TEMPLATE,
        finish=_as_published,
    ),
}
