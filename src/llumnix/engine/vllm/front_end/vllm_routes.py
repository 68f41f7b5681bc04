"""What every route of vLLM's server does to a server of many processes, decided one by one.

A route that is not in the list may keep something in one front end, or change one instance, without the others knowing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any


class Reach(Enum):
    EACH = "each request by itself"
    """Nothing of it outlives the request (and its connection) in a process."""
    ALL = "the whole server"
    """Acts on, or tells of, all front ends and instances, and what it changes holds for those that come later."""
    NOW = "all instances there are"
    """Not for those that start later."""
    ONE = "one front end"
    """Kept by one process: refused when there are several."""
    NONE = "refused"


ROUTES: dict[str, tuple[Reach, str]] = {
    "/adapters": (Reach.ALL, "loads a LoRA adapter, as SageMaker has it"),
    "/adapters/{adapter_name}": (Reach.ALL, "unloads it"),
    "/abort_requests": (Reach.ALL, "those named or all, whichever front end streams them"),
    "/inference/v1/abort_requests": (Reach.ALL, "those named, whichever front end streams them"),
    "/is_paused": (Reach.ALL, ""),
    "/is_sleeping": (Reach.ALL, ""),
    "/load": (Reach.ALL, "the sum over all front ends"),
    "/metrics": (Reach.ALL, "added up over all front ends, as Prometheus' text, also where OpenMetrics is asked for"),
    "/pause": (Reach.ALL, ""),
    "/release_kv_cache_memory": (Reach.ALL, ""),
    "/reset_encoder_cache": (Reach.ALL, ""),
    "/reset_mm_cache": (Reach.ALL, ""),
    "/reset_prefix_cache": (Reach.ALL, ""),
    "/resume": (Reach.ALL, ""),
    "/sleep": (Reach.ALL, ""),
    "/start_profile": (Reach.ALL, "one session for all; later instances are profiled, too"),
    "/stop_profile": (Reach.ALL, ""),
    "/v1/load_lora_adapter": (Reach.ALL, "an instance that cannot load it gets no requests for it, and tries again"),
    "/v1/models": (Reach.ALL, "base models and adapters"),
    "/v1/unload_lora_adapter": (Reach.ALL, ""),
    "/wake_up": (Reach.ALL, ""),
    "/weight_checker": (Reach.ALL, "checksum and compare; reset is refused"),
    "/collective_rpc": (Reach.NOW, "answers of all workers; methods that change weights are refused"),
    "/v1/responses/{response_id}": (Reach.ONE, "with `VLLM_ENABLE_RESPONSES_API_STORE`"),
    "/v1/responses/{response_id}/cancel": (Reach.ONE, "with `VLLM_ENABLE_RESPONSES_API_STORE`"),
    "/fault_tolerance/apply": (Reach.NONE, "instances that fail are replaced"),
    "/fault_tolerance/status": (Reach.NONE, "instances that fail are replaced"),
    "/finish_weight_update": (Reach.NONE, "instances that start later would not have the new weights"),
    "/init_weight_transfer_engine": (Reach.NONE, "instances that start later would not have the new weights"),
    "/scale_elastic_ep": (Reach.NONE, "`POST /llumnix/v1/instances` and drains do it"),
    "/shutdown_weight_transfer_engine": (Reach.NONE, "instances that start later would not have the new weights"),
    "/start_draft_weight_update": (Reach.NONE, "instances that start later would not have the new weights"),
    "/start_weight_update": (Reach.NONE, "instances that start later would not have the new weights"),
    "/update_weight_version": (Reach.NONE, "instances that start later would not have the new weights"),
    "/update_weights": (Reach.NONE, "instances that start later would not have the new weights"),
    "/classify": (Reach.EACH, ""),
    "/detokenize": (Reach.EACH, ""),
    "/docs": (Reach.EACH, ""),
    "/docs/oauth2-redirect": (Reach.EACH, ""),
    "/generative_scoring": (Reach.EACH, ""),
    "/get_world_size": (Reach.EACH, "of one instance"),
    "/health": (Reach.EACH, "200 while an instance takes requests"),
    "/inference/v1/generate": (Reach.EACH, ""),
    "/invocations": (Reach.EACH, "its sessions (`SAGEMAKER_ENABLE_STATEFUL_SESSIONS`) are kept by one front end"),
    "/is_scaling_elastic_ep": (Reach.EACH, "never"),
    "/kv_event_sources": (Reach.EACH, "by slot, as in events and `X-data-parallel-rank`; all front ends know the same"),
    "/openapi.json": (Reach.EACH, ""),
    "/ping": (Reach.EACH, "as `/health`"),
    "/pooling": (Reach.EACH, ""),
    "/redoc": (Reach.EACH, "where `/docs` needs the internet (with `--root-path`), else 404, as in vLLM"),
    "/rerank": (Reach.EACH, ""),
    "/score": (Reach.EACH, ""),
    "/server_info": (Reach.EACH, "all front ends have the same configuration"),
    "/static": (Reach.EACH, ""),
    "/tokenize": (Reach.EACH, ""),
    "/tokenizer_info": (Reach.EACH, ""),
    "/v1/audio/transcriptions": (Reach.EACH, ""),
    "/v1/audio/translations": (Reach.EACH, ""),
    "/v1/chat/completions": (Reach.EACH, ""),
    "/v1/chat/completions/batch": (Reach.EACH, ""),
    "/v1/chat/completions/derender": (Reach.EACH, ""),
    "/v1/chat/completions/render": (Reach.EACH, ""),
    "/v1/completions": (Reach.EACH, ""),
    "/v1/completions/derender": (Reach.EACH, ""),
    "/v1/completions/render": (Reach.EACH, ""),
    "/v1/embeddings": (Reach.EACH, ""),
    "/v1/messages": (Reach.EACH, ""),
    "/v1/messages/count_tokens": (Reach.EACH, ""),
    "/v1/messages/render": (Reach.EACH, ""),
    "/v1/realtime": (Reach.EACH, "a session is its connection"),
    "/v1/rerank": (Reach.EACH, ""),
    "/v1/responses": (Reach.EACH, "kept for later with `VLLM_ENABLE_RESPONSES_API_STORE` only"),
    "/v1/responses/render": (Reach.EACH, ""),
    "/v1/score": (Reach.EACH, ""),
    "/v1/systemone": (Reach.EACH, ""),
    "/cohere/v2/chat": (Reach.EACH, ""),
    "/cohere/v2/chat/render": (Reach.EACH, ""),
    "/v2/embed": (Reach.EACH, ""),
    "/v2/rerank": (Reach.EACH, ""),
    "/version": (Reach.EACH, ""),
    "/weight_info": (Reach.EACH, "the same everywhere, as weights stay"),
}
"""By path; the reference (docs/use/routes.md) is made from it."""


def undecided(routes: Iterable[Any]) -> list[str]:
    """Paths of an app's routes that the list does not know, such as those of a plugin."""
    return sorted(set(paths(routes)) - ROUTES.keys())


def paths(routes: Iterable[Any]) -> Iterator[str]:
    """Also of routers that FastAPI (from 0.137 on) keeps whole inside an app."""
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is not None:
            yield from paths(router.routes)
        else:
            yield route.path
