"""Token replay at an instance: a request goes on where its dead owner left it, its KV computed anew.

The request arrives as what it is, prompt here and output there, so that penalties, `min_tokens`, stop
conditions, grammar and priorities see exactly what they would have seen; vLLM recomputes it as one that was
preempted. Its random generator, if it has a seed, is brought to where it stood (`seeds.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from vllm.lora.request import LoRARequest
from vllm.v1.request import Request, RequestStatus

from llumnix.engine.vllm.between import Resume
from llumnix.engine.vllm.instance.incoming import for_worker
from llumnix.engine.vllm.instance.making import Maker
from llumnix.engine.vllm.instance.media import announce
from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.workers import Workers


class Resumes:
    """Requests that are to be taken up, and are made ready on a thread of their own: with a dead instance's hundreds of
    long streams, the batches here would stand still for it. To be called on the engine's main thread."""

    def __init__(
        self,
        scheduler: MigrationSupport,
        workers: Workers,
        maker: Maker,
        can_serve: Callable[[LoRARequest | None], bool],
        to_main: Callable[[Callable[[], None]], None],
    ) -> None:
        """`can_serve`: whether its adapter is there, or can be loaded; asked on the main thread. `to_main` has that
        thread call something between two steps."""
        self._scheduler = scheduler
        self._workers = workers
        self._maker = maker
        self._can_serve = can_serve
        self._to_main = to_main
        self._under_way: dict[str, Resume] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resume")

    def start(self, resume: Resume) -> Future[None]:
        """Done when the request is queued, or was aborted before; fails if it cannot be taken up."""
        done: Future[None] = Future()
        self._under_way[resume.request_id] = resume

        def made(request: Request | str) -> None:
            self._to_main(lambda: self._take_up(resume, request, done))

        making = self._thread.submit(self._maker.start, resume.request, resume.output_token_ids, made)
        making.add_done_callback(partial(_pass_on_failure, done))
        return done

    def abort(self, request_ids: Iterable[str]) -> None:
        """The scheduler does not know them yet."""
        for request_id in request_ids:
            self._under_way.pop(request_id, None)

    def abort_all_of(self, front_end: int, until_unix_s: float) -> None:
        """Of those that arrived at the front end until then."""
        theirs = [each for each in self._under_way.values() if each.front_end == front_end]
        self.abort([each.request_id for each in theirs if each.arrived_unix_s <= until_unix_s])

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    # on the main thread again

    def _take_up(self, resume: Resume, request: Request | str, done: Future[None]) -> None:
        """Queues it at the front."""
        wanted = self._under_way.pop(resume.request_id, None) is not None
        if isinstance(request, str):
            done.set_exception(ValueError(request))
        elif wanted and not self._can_serve(request.lora_request):
            done.set_exception(ValueError("its adapter cannot be loaded"))
        else:
            if wanted:
                self._queue(request, resume.thrown_away)
            done.set_result(None)

    def _queue(self, request: Request, thrown_away: int) -> None:
        if request.structured_output_request is not None:
            request.status = RequestStatus.WAITING
        if request.num_output_tokens and not self._scheduler.use_v2_model_runner:
            announce(request, self._scheduler, self._workers)
            self._workers.tell("llumnix_install", for_worker(request, thrown_away=thrown_away))
        self._scheduler.adopt(request, computed_tokens=0)


def _pass_on_failure(done: Future[None], making: Future[None]) -> None:
    """What the front end waits for ends as well."""
    if not making.cancelled() and (error := making.exception()) is not None and not done.done():
        done.set_exception(error)
