"""Token replay at an instance: a request goes on where its dead owner left it, its KV computed anew.

The request arrives as what it is, prompt here and output there, so that penalties, `min_tokens`, stop
conditions, grammar and priorities see exactly what they would have seen; vLLM recomputes it as one that was
preempted. Only a random generator cannot be brought back.
"""

from __future__ import annotations

from typing import Any

import msgspec
from vllm.v1.request import Request, RequestStatus

from llumnix.engine.vllm.incoming import CollectiveRpc
from llumnix.engine.vllm.scheduler import MigrationSupport


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """`request`: the EngineCoreRequest in vLLM's encoding, under its new engine id."""

    request: bytes
    output_token_ids: list[int]


def take_up(
    request: Request, resume: Resume, scheduler: MigrationSupport, structured_output: Any, rpc: CollectiveRpc
) -> None:
    """Queues the request at the front. Raises ValueError when its grammar rejects its own output."""
    request.append_output_token_ids(resume.output_token_ids)
    structured = request.structured_output_request
    if structured is not None:
        if isinstance(structured.grammar, Exception):
            raise ValueError(f"the grammar does not compile: {structured.grammar}")
        request.status = RequestStatus.WAITING
        if not structured_output.accept_tokens(request, list(request.output_token_ids)):
            raise ValueError("the grammar does not accept the output so far")
    if request.num_output_tokens:
        rpc(
            "llumnix_install",
            args=(
                {
                    "id": request.request_id,
                    "prompt_token_ids": request.prompt_token_ids,
                    "output_token_ids": list(request.output_token_ids),
                    "sampling_params": request.sampling_params,
                    "lora_request": request.lora_request,
                    "num_computed_tokens": 0,
                    "sampler_state": None,
                },
            ),
        )
    scheduler.adopt(request, computed_tokens=0)
