"""What a request has beside its tokens: pixels and the like, a prompt given as embeddings. Workers are told early."""

from __future__ import annotations

from vllm.v1.request import Request

from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.workers import Workers


def has_media(request: Request) -> bool:
    return bool(request.mm_features) or request.prompt_embeds is not None


def announce(request: Request, scheduler: MigrationSupport, workers: Workers) -> None:
    """Before `llumnix_install` of a request with media. The V2 runner is told of it all by the scheduler."""
    if _is_announced(request, scheduler):
        media = {
            "mm_features": request.mm_features,
            "prompt_embeds": request.prompt_embeds,
            "prompt_is_token_ids": request.prompt_is_token_ids,
        }
        workers.tell("llumnix_expect", request.request_id, media)


def retract(request: Request, scheduler: MigrationSupport, workers: Workers) -> None:
    """Instead of `llumnix_install`: what was announced is not needed."""
    if _is_announced(request, scheduler):
        workers.tell("llumnix_forget", request.request_id)


def _is_announced(request: Request, scheduler: MigrationSupport) -> bool:
    return has_media(request) and not scheduler.use_v2_model_runner
