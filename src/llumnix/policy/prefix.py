"""Names for the beginnings of prompts: a chain of hashes over chunks of tokens.

Two prompts that begin with the same n chunks have the same first n names, and others have not (but by accident, which
costs a wrong guess where a prompt is cached: what an engine shares it knows by hashes of its own). Chunks are large,
hundreds of tokens, so that names are few; and the hash is Python's own of numbers, which is the same in every process
and takes a twentieth of what the engine's takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

MOST_CHUNKS = 256
"""Of one prompt: who holds so much of it is known well enough."""

ChunkId = int
"""64 bits."""


def salt_of(*words: str) -> int:
    """For what cached tokens depend on beside the tokens before them, such as an adapter; 0 if all words are empty."""
    if not any(words):
        return 0
    return int.from_bytes(blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=7).digest())


def chunk_ids(
    token_ids: Sequence[int], chunk_tokens: int, salt: int = 0, known: Sequence[ChunkId] = ()
) -> tuple[ChunkId, ...]:
    """Of the whole chunks at the beginning. Empty for what are no numbers. `known`: the first of them."""
    ids = list(known)
    link = ids[-1] if ids else salt
    end = min(len(token_ids), MOST_CHUNKS * chunk_tokens)
    try:
        for last in range((len(ids) + 1) * chunk_tokens, end + 1, chunk_tokens):
            link = hash((link, hash(tuple(token_ids[last - chunk_tokens : last]))))
            ids.append(link)
    except TypeError:
        return ()
    return tuple(ids)


def cached_tokens(chunks: int, chunk_tokens: int, prompt_tokens: int) -> int:
    """Of a prompt, that need no computing where so many of its first chunks are cached: its last one always does."""
    cached = chunks * chunk_tokens
    return cached if cached < prompt_tokens else max(0, prompt_tokens - 1)
