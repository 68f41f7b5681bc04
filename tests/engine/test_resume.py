"""Token replay at an instance: made ready beside the engine's main thread, while aborts may overtake it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request

from llumnix.engine.vllm.between import RequestCodec, Resume
from llumnix.engine.vllm.instance.making import Maker
from llumnix.engine.vllm.instance.resume import Resumes

WAIT_S = 10
ARRIVED_S = engine_request("any").arrival_time


class Engine:
    """What takes up requests, on this thread; grammars compile until `compiled` is called."""

    def __init__(self) -> None:
        self.adopted: list[Request] = []
        self.installed: list[dict[str, Any]] = []
        self.compiling: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.makers: set[str] = set()
        self.problem = ""
        self.lacks_adapter = False
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.resumes = Resumes(
            SimpleNamespace(  # type: ignore[arg-type]
                adopt=lambda request, computed_tokens: self.adopted.append(request), use_v2_model_runner=False
            ),
            SimpleNamespace(tell=self._install),  # type: ignore[arg-type]
            Maker(self._make, SimpleNamespace(accept_tokens=lambda *_: True)),
            can_serve=lambda lora: not self.lacks_adapter,
            to_main=self._calls.put,
        )

    def _install(self, _method: str, *arguments: dict[str, Any]) -> None:
        self.installed += arguments

    def _make(self, original: EngineCoreRequest) -> Request:
        self.makers.add(threading.current_thread().name)
        if self.problem:
            raise ValueError(self.problem)
        made = Request.from_engine_core_request(original, None)
        compiling: Future[None] = Future()
        made.structured_output_request = SimpleNamespace(  # type: ignore[assignment]
            _grammar=compiling, grammar=None, reasoning_ended=True
        )
        self.compiling.put(lambda: compiling.set_result(None))
        return made

    def start(self, request_id: str, front_end: int = 0) -> Future[None]:
        request = RequestCodec().encode(engine_request(request_id))
        return self.resumes.start(
            Resume(
                request_id=request_id,
                front_end=front_end,
                arrived_unix_s=ARRIVED_S,
                request=[memoryview(frame) for frame in request],
                output_token_ids=[7, 8],
                thrown_away=3,
            )
        )

    def compiled(self) -> None:
        self.compiling.get(timeout=WAIT_S)()

    def step(self) -> None:
        self._calls.get(timeout=WAIT_S)()


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.resumes.close()


def test_request_goes_on_with_its_output(engine: Engine) -> None:
    done = engine.start("r~1")
    engine.compiled()
    assert engine.adopted == []
    engine.step()
    assert done.done()
    assert [list(request.output_token_ids) for request in engine.adopted] == [[7, 8]]
    assert [made["drawn_tokens"] for made in engine.installed] == [5]
    assert engine.makers == {"resume_0"}, "made on the main thread, for which the batch would have to wait"


def test_client_that_leaves_while_the_grammar_compiles(engine: Engine) -> None:
    done = engine.start("r~1")
    engine.resumes.abort(["r~1", "another"])
    engine.compiled()
    engine.step()
    assert done.result() is None
    assert engine.adopted == []


def test_front_end_that_dies_while_the_grammar_compiles(engine: Engine) -> None:
    engine.start("r~1", front_end=1)
    engine.start("s~1", front_end=0)
    engine.resumes.abort_all_of(1, ARRIVED_S)
    engine.resumes.abort_all_of(0, ARRIVED_S - 1.0)  # an earlier one at the same place
    for _ in range(2):
        engine.compiled()
        engine.step()
    assert [request.request_id for request in engine.adopted] == ["s~1"]


def test_request_that_cannot_be_made(engine: Engine) -> None:
    engine.problem = "no such adapter"
    done = engine.start("r~1")
    engine.step()
    assert str(done.exception()) == "it cannot be made here: no such adapter"
    assert engine.adopted == []


def test_one_whose_adapter_cannot_be_loaded_fails_and_never_meets_a_step() -> None:
    engine = Engine()
    engine.lacks_adapter = True
    done = engine.start("r")
    engine.compiled()
    engine.step()
    assert "adapter" in str(done.exception(timeout=WAIT_S))
    assert engine.adopted == []
