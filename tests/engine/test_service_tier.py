"""A request's `service_tier`, where vLLM's own schema knows it and where not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from llumnix.engine.vllm.front_end.priority import SERVINGS, honour_service_tier
from llumnix.types import HIGH

ASKED: dict[str, tuple[Any, dict[str, Any]]] = {
    "openai_serving_chat": (ChatCompletionRequest, {"messages": [{"role": "user", "content": "Hello"}]}),
    "openai_serving_completion": (CompletionRequest, {"prompt": "Hello"}),
    "openai_serving_responses": (ResponsesRequest, {"input": "Hello"}),
}


@pytest.mark.parametrize("name", SERVINGS)
def test_tier_is_read_on_every_route_and_a_priority_of_its_own_goes_before_it(name: str) -> None:
    serving = SimpleNamespace(_get_priority=GenerateBaseServing._get_priority)
    honour_service_tier(SimpleNamespace(**{name: serving}))
    kind, body = ASKED[name]
    says: list[tuple[dict[str, Any], int]] = [
        ({}, 0),
        ({"service_tier": "priority"}, HIGH),
        ({"service_tier": "flex"}, 0),
        ({"service_tier": "priority", "priority": 3}, 3),
        ({"service_tier": "priority", "priority": -9}, -9),
    ]
    for said, priority in says:
        assert serving._get_priority(kind(model="tiny", **body, **said), None) == priority, said
