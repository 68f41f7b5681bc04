"""Memory that running requests will take."""

from __future__ import annotations

from collections.abc import Iterable

from vllm.v1.request import Request

from llumnix.engine.vllm.instance.block_counts import BlockCounts


def growth_blocks(running: Iterable[Request], counts: BlockCounts, steps: int) -> int:
    """Blocks that the batch will take within so many steps: for prompts that are not computed yet, and for one token
    per request and step, as far as each may still go. While a step is being planned, what those that run take in it is
    theirs already."""
    return sum(counts.to_come(request.request_id, _tokens_after(request, steps)) for request in running)


def _tokens_after(request: Request, steps: int) -> int:
    """With KV, after so many steps more; the last token of a request needs none. Steps in flight may have computed
    beyond the tokens that are known, and what drafts took may be beyond the end."""
    next_step = max(request.num_tokens, request.num_computed_tokens + 1)
    return min(next_step + steps - 1, request.num_tokens + remaining_tokens(request) - 1)


def remaining_tokens(request: Request) -> int:
    return request.max_tokens - request.num_output_tokens
