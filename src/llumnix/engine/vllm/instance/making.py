"""Requests made of what another instance or a front end wrote down, and brought to where their output stands.

Takes long (hashing a prompt, compiling a grammar): not for the thread that a batch waits for. What is written down may
make vLLM raise anything, on threads where nobody would hear of it, or the instance would end: it is a problem of that
request alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request

from llumnix.engine.vllm.between import RequestCodec
from llumnix.engine.vllm.instance.grammar import follow, why_not_compiled
from llumnix.wire.base import Frame

log = logging.getLogger(__name__)

Then = Callable[[Request | str], None]
"""Told what was made, or why it cannot go on here."""

GRAMMAR_REFUSED = "its grammar does not accept its own output here"


class Maker:
    """Not thread safe: one for each thread that makes requests."""

    def __init__(self, make: Callable[[EngineCoreRequest], Request], structured_output: Any) -> None:
        self._make = make
        self._structured_output = structured_output
        self._codec = RequestCodec()

    def start(self, frames: Sequence[Frame], output_token_ids: list[int], then: Then) -> None:
        """`frames`: of the EngineCoreRequest in vLLM's encoding. Calls `then` on this thread, or on one that compiles
        grammars."""
        try:
            request = self._make(self._codec.decode(frames))
        except Exception as error:
            log.warning("a request from elsewhere cannot be made here", exc_info=error)
            then(f"it cannot be made here: {error}")
            return
        when_grammar_ready(request, lambda: then(self._follow(request, output_token_ids)))

    def _follow(self, request: Request, output_token_ids: list[int]) -> Request | str:
        if problem := why_not_compiled(request):
            return f"its grammar does not compile here: {problem}"
        try:
            accepted = follow(request, self._structured_output, output_token_ids)
        except Exception as error:
            log.warning("the grammar of a request from elsewhere fails here", exc_info=error)
            return f"its grammar fails here: {error}"
        return request if accepted else GRAMMAR_REFUSED


def when_grammar_ready(request: Request, proceed: Callable[[], None]) -> None:
    """Calls `proceed` once the grammar is compiled (or has failed to); at once if there is none.

    Relies on `StructuredOutputRequest._grammar` being a Future while vLLM's pool compiles it.
    """
    structured = request.structured_output_request
    grammar = None if structured is None else structured._grammar
    if isinstance(grammar, Future):
        grammar.add_done_callback(lambda _: proceed())
    else:
        proceed()
