"""Requests as vLLM's front end makes them."""

from __future__ import annotations

from typing import Any

import torch
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

PICTURE = MultiModalFeatureSpec(
    data=None, modality="image", identifier="p", mm_position=PlaceholderRange(offset=0, length=1), mm_hash="p"
)

PIXELS = torch.arange(100, dtype=torch.float32).reshape(4, 25)
"""400 bytes: more than vLLM's encoding takes into the first frame."""


def picture(pixels: torch.Tensor = PIXELS) -> MultiModalFeatureSpec:
    """An image that was processed."""
    element = MultiModalFieldElem(data=pixels, field=MultiModalBatchedField())
    return MultiModalFeatureSpec(
        data=MultiModalKwargsItem({"pixel_values": element}),
        modality="image",
        identifier="p",
        mm_position=PlaceholderRange(offset=0, length=1),
        mm_hash="p",
    )


def engine_request(request_id: str, **fields: Any) -> EngineCoreRequest:
    """A short greedy one, but for `fields`."""
    plain: dict[str, Any] = {
        "request_id": request_id,
        "prompt_token_ids": [1, 2, 3],
        "mm_features": None,
        "sampling_params": SamplingParams(temperature=0.0),
        "pooling_params": None,
        "arrival_time": 0.0,
        "lora_request": None,
        "cache_salt": None,
        "data_parallel_rank": None,
    }
    return EngineCoreRequest(**plain | fields)
