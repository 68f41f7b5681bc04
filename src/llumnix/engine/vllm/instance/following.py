"""An instance's share in the state of the server (control/server_state.py)."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

import msgspec
from vllm.lora.request import LoRARequest

from llumnix.control.server_state import Applied, Op, ServerState
from llumnix.engine.vllm.lora import request_for

log = logging.getLogger(__name__)

_OPS = frozenset(
    {
        *("pause_scheduler", "resume_scheduler", "sleep", "wake_up", "release_kv_cache_memory", "profile"),
        *("reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache"),
    }
)
"""Methods of vLLM's engine core that a state may name."""


class Follower:
    """Brings one engine core to what it is told, each version once, whoever tells it first."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._state: ServerState | None = None
        self._result: Any = None
        self._failure: Exception | None = None
        self._loaded: dict[int, int] = {}  # adapters: generation by id
        self._lacks: set[int] = set()

    def follow(self, state: ServerState) -> bytes | Future[bytes]:
        """Of a version that it has already, only adapters are tried again that could not be loaded. Raises what the
        engine raises, to everybody who tells it of that version."""
        if self._state is None:
            self._catch_up(state)
        elif state.version > self._state.version:
            self._go_on(self._state, state)
        if self._failure is not None:
            raise self._failure
        self._load_adapters()
        return self._answer()

    def _catch_up(self, state: ServerState) -> None:
        """It has just started."""
        for op in state.activity:
            self._do(op)
        self._state = state
        if state.profile is not None:
            try:
                self._do(state.profile)
            except Exception as error:  # noqa: BLE001 vLLM's profilers raise anything, and it can serve without one
                log.warning("this instance is not profiled as the others are: %s", error)

    def _go_on(self, before: ServerState, state: ServerState) -> None:
        self._state, self._result, self._failure = state, None, None
        try:
            if state.op is not None and state.version == before.version + 1:
                self._result = self._do(state.op)
            else:
                self._match(before, state)
        except Exception as error:  # noqa: BLE001 whatever vLLM raises is an answer, more than once
            self._failure = error

    def _match(self, before: ServerState, state: ServerState) -> None:
        """Where a change was taken back, or not heard of."""
        if state.activity != before.activity:
            self._do(Op("wake_up", (None,)))
            self._do(Op("resume_scheduler"))
            for op in state.activity:
                self._do(op)
        if state.profile != before.profile:
            self._do(state.profile or Op("profile", (False,)))
        if state.op is not None and state.op.name.startswith("reset_"):
            self._result = self._do(state.op)

    def _do(self, op: Op) -> Any:
        if op.name not in _OPS:
            raise ValueError(f"no state of a server has {op.name!r} in it")
        return getattr(self._core, op.name)(*op.args)

    def _answer(self) -> bytes | Future[bytes]:
        lacks = tuple(sorted(self._lacks))
        if not isinstance(self._result, Future):
            return msgspec.msgpack.encode(Applied(self._result, lacks))
        answer: Future[bytes] = Future()

        def settled(result: Future[Any]) -> None:
            if (error := result.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(msgspec.msgpack.encode(Applied(result.result(), lacks)))

        self._result.add_done_callback(settled)
        return answer

    # -- adapters

    def loaded(self, adapter_id: int) -> None:
        self._loaded.setdefault(adapter_id, 0)
        self._lacks.discard(adapter_id)

    def has_adapter(self, adapter_id: int) -> bool:
        return adapter_id in self._loaded and adapter_id not in self._lacks

    def can_serve(self, lora: LoRARequest | None) -> bool:
        """Loads the adapter if need be. An engine that meets one in a step, and cannot load it, ends."""
        if lora is None or self.has_adapter(lora.lora_int_id):
            return True
        try:
            self._core.add_lora(msgspec.structs.replace(lora, load_inplace=False))
        except Exception as error:  # noqa: BLE001 as below
            log.warning("a request is turned away, its adapter %r cannot be loaded: %s", lora.lora_name, error)
            return False
        return True

    def _load_adapters(self) -> None:
        """An adapter that cannot be loaded must not keep the instance from serving everything else."""
        assert self._state is not None
        wanted = {adapter.id: adapter for adapter in self._state.adapters or ()}
        self._lacks &= wanted.keys()
        for gone in self._loaded.keys() - wanted.keys():
            del self._loaded[gone]  # requests may still use it: vLLM's own cache lets go of it in time
        for adapter in wanted.values():
            if self._loaded.get(adapter.id) == adapter.generation and adapter.id not in self._lacks:
                continue
            try:
                self._core.add_lora(request_for(adapter, load_inplace=adapter.id in self._loaded))
            except Exception as error:  # noqa: BLE001 vLLM and what it loads with raise anything
                if adapter.id not in self._lacks:
                    log.warning("adapter %r is not served here, it cannot be loaded: %s", adapter.name, error)
                self._lacks.add(adapter.id)
            else:
                self._loaded[adapter.id] = adapter.generation
                self._lacks.discard(adapter.id)
