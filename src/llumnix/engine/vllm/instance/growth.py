"""Memory that running requests will take."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vllm.v1.request import Request


def growth_blocks(running: Iterable[Request], blocks_for: Callable[[int], int], steps: int) -> int:
    """Blocks that the batch will take within so many steps: for prompts that are not computed yet, and for one token
    per request and step, as far as each may still go. `blocks_for`: of so many tokens."""
    return sum(
        blocks_for(request.num_tokens + min(steps, remaining_tokens(request))) - blocks_for(request.num_computed_tokens)
        for request in running
    )


def remaining_tokens(request: Request) -> int:
    return request.max_tokens - request.num_output_tokens
