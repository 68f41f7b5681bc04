"""Names that are imported; nothing is decoded here."""

from __future__ import annotations

from typing import Any, NoReturn


class ImageReadMode:
    RGB = "RGB"


def decode_image(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("the stand-in for torchvision decodes no images")
