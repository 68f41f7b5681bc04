"""The first requests with grammars, made on the threads of vLLM's sockets, of the mailbox and of resumes at once."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, Lock
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1 import structured_output
from vllm.v1.structured_output import StructuredOutputManager

from llumnix.engine.vllm.instance.core import LlumnixEngineCore

THREADS = 3


class Backend:
    """Takes its time to look at the vocabulary."""

    made = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        time.sleep(0.05)
        Backend.made += 1


def test_vocabulary_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    manager: Any = StructuredOutputManager.__new__(StructuredOutputManager)
    manager.backend, manager.tokenizer, manager.reasoner_cls = None, None, None
    manager.vllm_config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 8))
    manager._use_async_grammar_compilation = True
    manager.executor = SimpleNamespace(submit=lambda *_: Future())
    monkeypatch.setattr(structured_output, "XgrammarBackend", Backend)
    core: Any = LlumnixEngineCore.__new__(LlumnixEngineCore)
    core.mm_receiver_cache = core.request_block_hasher = None
    core.structured_output_manager, core._grammars = manager, Lock()
    core.scheduler = SimpleNamespace(prefixes=None)
    together = Barrier(THREADS)

    def make(number: int) -> None:
        wanted = StructuredOutputsParams(regex="[0-9]*")
        wanted._backend = "xgrammar"
        request = engine_request(f"r{number}", sampling_params=SamplingParams(structured_outputs=wanted))
        together.wait()
        core.preprocess_add_request(request)

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(make, range(THREADS))) == [None] * THREADS
    assert Backend.made == 1
