"""Token replay at an instance: a request goes on where its dead owner left it, its KV computed anew.

The request arrives as what it is, prompt here and output there, so that penalties, `min_tokens`, stop
conditions, grammar and priorities see exactly what they would have seen; vLLM recomputes it as one that was
preempted. Only a random generator cannot be brought back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request, RequestStatus

from llumnix.engine.vllm.between import RequestCodec, Resume
from llumnix.engine.vllm.instance.grammar import follow, why_not_compiled
from llumnix.engine.vllm.instance.incoming import CollectiveRpc, for_worker
from llumnix.engine.vllm.instance.scheduler import MigrationSupport


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How requests are made, on any thread."""

    make: Callable[[EngineCoreRequest], Request]
    when_grammar_ready: Callable[[Request, Callable[[], None]], None]
    """Calls back once the grammar is compiled, or has failed to."""
    can_serve: Callable[[LoRARequest | None], bool]
    """Whether its adapter is there, or can be loaded; asked on the main thread."""
    to_main: Callable[[Callable[[], None]], None]
    """Has the engine's main thread call it between two steps."""


class Resumes:
    """Requests that are to be taken up, and are made ready on a thread of their own: with a dead instance's hundreds of
    long streams, the batches here would stand still for it. To be called on the engine's main thread."""

    def __init__(self, scheduler: MigrationSupport, structured_output: Any, rpc: CollectiveRpc, making: Making) -> None:
        self._scheduler = scheduler
        self._structured_output = structured_output
        self._rpc = rpc
        self._making = making
        self._under_way: dict[str, Resume] = {}
        self._codec = RequestCodec()  # used by the thread alone
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resume")

    def start(self, resume: Resume) -> Future[None]:
        """Done when the request is queued, or was aborted before; fails if it cannot be taken up."""
        done: Future[None] = Future()
        self._under_way[resume.request_id] = resume
        self._thread.submit(self._prepare, resume, done)
        return done

    def abort(self, request_ids: Iterable[str]) -> None:
        """The scheduler does not know them yet."""
        for request_id in request_ids:
            self._under_way.pop(request_id, None)

    def abort_all_of(self, front_end: int, until_unix_s: float) -> None:
        """Of those that arrived at the front end until then."""
        theirs = [each for each in self._under_way.values() if each.front_end == front_end]
        codec = RequestCodec()
        self.abort([each.request_id for each in theirs if codec.decode(each.request).arrival_time <= until_unix_s])

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    # on the thread, or on one that compiles grammars; nobody else would hear of an exception there

    def _prepare(self, resume: Resume, done: Future[None]) -> None:
        try:
            request = self._making.make(self._codec.decode(resume.request))
            self._making.when_grammar_ready(request, partial(self._follow, request, resume, done))
        except Exception as error:  # noqa: BLE001
            self._fail(resume, done, str(error))

    def _follow(self, request: Request, resume: Resume, done: Future[None]) -> None:
        try:
            problem = why_not_compiled(request)
            if problem:
                problem = f"the grammar does not compile: {problem}"
            elif not follow(request, self._structured_output, resume.output_token_ids):
                problem = "the grammar does not accept the output so far"
        except Exception as error:  # noqa: BLE001
            problem = str(error)
        if problem:
            self._fail(resume, done, problem)
        else:
            self._making.to_main(partial(self._take_up, request, done))

    def _fail(self, resume: Resume, done: Future[None], why: str) -> None:
        def fail() -> None:
            self._under_way.pop(resume.request_id, None)
            done.set_exception(ValueError(why))

        self._making.to_main(fail)

    # on the main thread again

    def _take_up(self, request: Request, done: Future[None]) -> None:
        """Queues it at the front."""
        if self._under_way.pop(request.request_id, None) is not None:
            if not self._making.can_serve(request.lora_request):
                done.set_exception(ValueError("its adapter cannot be loaded"))
                return
            if request.structured_output_request is not None:
                request.status = RequestStatus.WAITING
            if request.num_output_tokens:
                self._rpc("llumnix_install", args=(for_worker(request),))
            self._scheduler.adopt(request, computed_tokens=0)
        done.set_result(None)
