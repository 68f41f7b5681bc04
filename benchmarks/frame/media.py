"""Images, videos and sounds of noise, made from a seed, as parts of a chat's message."""

from __future__ import annotations

import base64
import io
import random
import struct
import wave
import zlib
from typing import Any

_SIDES = (28, 56, 84, 112, 150)
_SAMPLES_PER_S = 16000


def image(rng: random.Random) -> dict[str, Any]:
    return {"type": "image_url", "image_url": _data_url("image/png", _png(rng, rng.choice(_SIDES), rng.choice(_SIDES)))}


def video(rng: random.Random) -> dict[str, Any]:
    """By its frames. vLLM calls them `video/jpeg`, whatever they are in, and takes them without a decoder of films."""
    width, height = rng.choice(_SIDES), rng.choice(_SIDES)
    frames = [_png(rng, width, height) for _ in range(rng.randint(2, 8))]
    return {"type": "video_url", "video_url": _data_url("video/jpeg", *frames)}


def audio(rng: random.Random) -> dict[str, Any]:
    """Of a quarter of a second to four."""
    samples = rng.randint(_SAMPLES_PER_S // 4, 4 * _SAMPLES_PER_S)
    return {"type": "input_audio", "input_audio": {"data": _text(_wav(rng, samples)), "format": "wav"}}


def _png(rng: random.Random, width: int, height: int) -> bytes:
    rows = b"".join(b"\0" + rng.randbytes(3 * width) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # eight bits for each of three colours
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _wav(rng: random.Random, samples: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(_SAMPLES_PER_S)
        sound.writeframes(rng.randbytes(2 * samples))
    return file.getvalue()


def _data_url(kind: str, *files: bytes) -> dict[str, str]:
    return {"url": f"data:{kind};base64,{','.join(map(_text, files))}"}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
