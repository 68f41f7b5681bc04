"""Names of what a recorded run must not tell: equal where the things are, and nobody can find out what they are.

They are hashes under a key that stays in the memory of the server's processes. Who has only the recording can see which
prompts begin alike, but cannot try whether one begins as some text does.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from llumnix.record.form import MOST_UNITS

_BYTES = 8
_EXACT_BITS = 53
"""Of a whole number that every reader of JSON keeps."""

_encode = msgspec.msgpack.Encoder().encode


def hidden_id(name: str, key: bytes) -> str:
    return "r" + blake2b(name.encode(errors="surrogatepass"), key=key, digest_size=_BYTES).hexdigest()


def unit_hashes(token_ids: Sequence[int], unit_tokens: int, salt: int, key: bytes) -> tuple[int, ...]:
    """Of the whole units at the beginning, each with all that is before it. `salt`: of what the cache depends on
    beside tokens (`policy.prefix.salt_of`)."""
    link = salt.to_bytes(_BYTES)
    hashes: list[int] = []
    for last in range(unit_tokens, min(len(token_ids), MOST_UNITS * unit_tokens) + 1, unit_tokens):
        content = _encode(token_ids[last - unit_tokens : last])
        link = blake2b(link + content, key=key, digest_size=_BYTES).digest()
        hashes.append(int.from_bytes(link) >> (8 * _BYTES - _EXACT_BITS))
    return tuple(hashes)
