"""LoRA adapters are loaded and unloaded for all front ends and instances, those to come included.

vLLM keeps them in each server process (`OpenAIServingModels`), and counts their ids there; engines keep weights by id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from unittest import mock
from weakref import WeakValueDictionary

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.lora.request import LoRARequest
from vllm.utils.counter import AtomicCounter

from llumnix.control.server_state import Adapter, ServerState, with_adapter_id_taken, with_adapters
from llumnix.engine.vllm.front_end.shared_state import SharedState
from llumnix.engine.vllm.lora import adapter_of, request_for


@dataclass(frozen=True, slots=True)
class _Originals:
    """vLLM's own methods, which do the work once it is this front end's turn."""

    load: Any
    unload: Any
    resolve: Any


@contextmanager
def static_adapters_loaded_once(shared_state: SharedState) -> Iterator[None]:
    """Around vLLM's `init_app_state`, which loads the adapters of the command line, `--default-mm-loras` among them,
    under ids from 1 on. Once the server has told its adapters, these ids may be other ones'."""
    if shared_state.file.read().adapters is None:
        yield
        return
    with mock.patch.object(OpenAIServingModels, "init_static_loras", _load_nothing):
        yield


async def _load_nothing(_serving: OpenAIServingModels) -> None:
    """The server's own adapters follow (`share_adapters`)."""


async def share_adapters(serving: OpenAIServingModels, shared_state: SharedState) -> None:
    """From here on the adapters of this front end are those of the server. Those that it was started with count if it
    is the first one that tells."""
    shared = SharedAdapters(serving, shared_state)
    if shared_state.file.read().adapters is None:  # else nobody's change, which may take long, has to be waited for
        async with shared_state.file.changing() as write:
            state = shared_state.file.read()
            if state.adapters is None:
                state = with_adapters(state, tuple(adapter_of(lora, 0) for lora in serving.lora_requests.values()))
                write(state)
                await shared_state.commit(state)
    shared_state.followers.append(shared.follow)
    shared.follow(shared_state.file.read())


class SharedAdapters:
    def __init__(self, serving: OpenAIServingModels, shared_state: SharedState) -> None:
        self._serving = serving
        self._shared_state = shared_state
        self._own = _Originals(serving.load_lora_adapter, serving.unload_lora_adapter, serving.resolve_lora)
        self._asked_for: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By name, while somebody asks."""
        serving.load_lora_adapter = self.load  # type: ignore[method-assign]
        serving.unload_lora_adapter = self.unload  # type: ignore[method-assign]
        serving.resolve_lora = self.resolve  # type: ignore[method-assign]

    def follow(self, state: ServerState) -> None:
        """The names that requests may use here."""
        self._serving.lora_requests.clear()
        self._serving.lora_requests.update({adapter.name: request_for(adapter) for adapter in state.adapters or ()})

    async def load(self, request: Any, base_model_name: str | None = None) -> ErrorResponse | str:
        return await self._shared_state.to_the_end(self._load(request, base_model_name))

    async def unload(self, request: Any) -> ErrorResponse | str:
        return await self._shared_state.to_the_end(self._unload(request))

    async def resolve(self, lora_name: str) -> LoRARequest | ErrorResponse:
        """An adapter that a request names and that nobody has loaded: vLLM's plugins may find it."""
        async with self._asked_for.setdefault(lora_name, asyncio.Lock()):  # as vLLM has it: one at a time of a name
            if (known := self._serving.lora_requests.get(lora_name)) is not None:
                return known
            if not await self._is_found(lora_name):  # a misspelt model: it must cost nobody else anything
                missing = f"LoRA adapter {lora_name} does not exist"
                return ErrorResponse(error=ErrorInfo(message=missing, type="NotFoundError", code=HTTPStatus.NOT_FOUND))
            return await self._shared_state.to_the_end(self._resolve(lora_name))

    async def _is_found(self, lora_name: str) -> bool:
        """May take long: plugins ask the network. They keep what they have found."""
        base_model_name = self._serving.model_config.model
        for resolver in self._serving.lora_resolvers:
            if await resolver.resolve_lora(base_model_name, lora_name) is not None:
                return True
        return False

    async def _load(self, request: Any, base_model_name: str | None) -> ErrorResponse | str:
        async with self._shared_state.file.changing() as write:
            state = self._begin(write)
            before = _named(state, request.lora_name)
            answer: ErrorResponse | str = await self._own.load(request, base_model_name)
            if isinstance(answer, str):
                generation = 0 if before is None else before.generation + 1
                loaded = adapter_of(self._serving.lora_requests[request.lora_name], generation)
                await self._commit(write, with_adapters(state, _without(state, loaded.name, loaded)))
            elif before is not None and request.load_inplace:
                # Some instances may have the new weights already: all take the old ones again.
                again = adapter_of(request_for(before), before.generation + 1)
                await self._commit(write, with_adapters(state, _without(state, before.name, again)))
            return answer

    async def _unload(self, request: Any) -> ErrorResponse | str:
        async with self._shared_state.file.changing() as write:
            state = self._begin(write)
            answer: ErrorResponse | str = await self._own.unload(request)
            if isinstance(answer, str):
                await self._commit(write, with_adapters(state, _without(state, request.lora_name)))
            return answer

    async def _resolve(self, lora_name: str) -> LoRARequest | ErrorResponse:
        async with self._shared_state.file.changing() as write:
            state = self._begin(write)
            answer: LoRARequest | ErrorResponse = await self._own.resolve(lora_name)
            if isinstance(answer, LoRARequest) and _named(state, lora_name) is None:
                await self._commit(write, with_adapters(state, _without(state, lora_name, adapter_of(answer, 0))))
            return answer

    def _begin(self, write: Any) -> ServerState:
        """This front end is up to date, and the id that vLLM would take next is nobody else's, whatever happens now."""
        state = self._shared_state.file.read()
        self.follow(state)
        self._serving.lora_id_counter = AtomicCounter(state.last_adapter_id)
        state = with_adapter_id_taken(state, state.last_adapter_id + 1)
        write(state)
        return state

    async def _commit(self, write: Any, state: ServerState) -> None:
        write(state)
        self.follow(state)
        await self._shared_state.commit(state)


def _named(state: ServerState, name: str) -> Adapter | None:
    return next((adapter for adapter in state.adapters or () if adapter.name == name), None)


def _without(state: ServerState, name: str, *more: Adapter) -> tuple[Adapter, ...]:
    return (*(adapter for adapter in state.adapters or () if adapter.name != name), *more)
