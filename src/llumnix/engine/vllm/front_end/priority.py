"""Priority of a request: vLLM's `priority` field, or OpenAI's `service_tier`."""

from __future__ import annotations

from typing import Any

from llumnix.engine.vllm.front_end.ticket import current_ticket
from llumnix.types import HIGH

SERVINGS = ("openai_serving_chat", "openai_serving_completion", "openai_serving_responses")
"""Attributes of the app's state: the objects that answer generations."""


def honour_service_tier(state: Any) -> None:
    """Makes `service_tier: "priority"` mean high priority, unless the request says a priority of its own.

    Wraps `_get_priority` (entrypoints/generate/base/serving.py) on the serving objects of this app, through
    which every one of their requests gets its priority.
    """
    for name in SERVINGS:
        serving = getattr(state, name, None)
        if serving is not None:
            serving._get_priority = _tiered(serving._get_priority)


def _tiered(get_priority: Any) -> Any:
    def priority_of(request: Any, raw_request: Any) -> int:
        priority: int = get_priority(request, raw_request)
        tier = getattr(request, "service_tier", None)
        if tier is None:  # completions have no such field in vLLM's schema, but keep what they do not know
            tier = (getattr(request, "model_extra", None) or {}).get("service_tier")
        if (ticket := current_ticket.get()) is not None:
            ticket.service_tier = tier or ""
        return HIGH if priority == 0 and tier == "priority" else priority

    return priority_of
