"""In terms of PyTorch alone; images are tensors of (…, channels, height, width)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from torchvision.transforms import InterpolationMode

__all__ = [
    "InterpolationMode",
    "crop",
    "grayscale_to_rgb",
    "normalize",
    "pad",
    "pil_to_tensor",
    "resize",
    "to_pil_image",
]

_SMOOTH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)


def pil_to_tensor(image: Any) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image))
    return (pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


def to_pil_image(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("the stand-in for torchvision makes no images of tensors")


def resize(
    image: torch.Tensor,
    size: Sequence[int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    antialias: bool = True,
) -> torch.Tensor:
    """`size`: height and width."""
    if interpolation not in _SMOOTH:
        raise NotImplementedError(f"the stand-in for torchvision does not resize by {interpolation}")
    batch = image.reshape(-1, *image.shape[-3:]).to(torch.float32)
    resized = torch.nn.functional.interpolate(
        batch, size=tuple(size), mode=interpolation.value, align_corners=False, antialias=antialias
    )
    if not image.dtype.is_floating_point:
        resized = resized.round().clamp(0, 255)
    return resized.to(image.dtype).reshape(*image.shape[:-2], *size)


def normalize(
    image: torch.Tensor, mean: float | Sequence[float], std: float | Sequence[float], inplace: bool = False
) -> torch.Tensor:
    def by_channel(value: float | Sequence[float]) -> torch.Tensor:
        return torch.as_tensor(value, dtype=image.dtype).reshape(-1, 1, 1)

    return (image - by_channel(mean)) / by_channel(std)


def pad(image: torch.Tensor, padding: Sequence[int], fill: float = 0, padding_mode: str = "constant") -> torch.Tensor:
    """`padding`: left, top, right, bottom."""
    left, top, right, bottom = padding
    return torch.nn.functional.pad(image, (left, right, top, bottom), mode=padding_mode, value=fill)


def crop(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    return image[..., top : top + height, left : left + width]


def grayscale_to_rgb(image: torch.Tensor) -> torch.Tensor:
    return image if image.shape[-3] == 3 else image.expand(*image.shape[:-3], 3, *image.shape[-2:])
