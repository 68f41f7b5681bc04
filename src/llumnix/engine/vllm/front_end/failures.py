"""Why requests failed that the front end had to give up, for the clients that are told of it."""

from __future__ import annotations

from typing import Any

from vllm.exceptions import GenerationError

from llumnix.engine.vllm.front_end.priority import SERVINGS

_REMEMBERED = 10_000


class Failures:
    """The reasons that no client has been told yet; of clients that went away, only the latest."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def remember(self, request_id: str, why: str) -> None:
        self._reasons[request_id] = why
        if len(self._reasons) > _REMEMBERED:
            del self._reasons[next(iter(self._reasons))]

    def take(self, request_id: str) -> str | None:
        return self._reasons.pop(request_id, None)


def tell_why(state: Any, failures: Failures) -> None:
    """Makes errors of given-up requests say why, where vLLM says "Internal server error".

    Wraps `_raise_if_error` (entrypoints/generate/base/serving.py) on the serving objects of this app, which is
    asked about every finished sequence and knows no reasons.
    """
    for name in SERVINGS:
        serving = getattr(state, name, None)
        if serving is not None:
            serving._raise_if_error = _telling(serving._raise_if_error, failures)


def _telling(raise_if_error: Any, failures: Failures) -> Any:
    def raise_with_reason(finish_reason: str | None, request_id: str) -> None:
        why = failures.take(request_id) if finish_reason == "error" else None
        if why is not None:
            raise GenerationError(f"The request was given up: {why}.")
        raise_if_error(finish_reason, request_id)

    return raise_with_reason
