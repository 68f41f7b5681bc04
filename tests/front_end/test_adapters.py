"""LoRA adapters over two front ends: one list of names, one count of ids."""

from __future__ import annotations

import argparse
import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI

pytest.importorskip("vllm")

from vllm.entrypoints.launchers import app
from vllm.entrypoints.launchers.api_server import app_state
from vllm.entrypoints.openai.models.protocol import BaseModelPath, LoRAModulePath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.lora.request import LoRARequest

from llumnix.engine.vllm.front_end import serve
from llumnix.engine.vllm.front_end.adapters import share_adapters
from llumnix.engine.vllm.front_end.members import Members
from llumnix.engine.vllm.front_end.shared_state import SharedState
from llumnix.engine.vllm.front_end.state_file import StateFile


class Engines:
    """All instances: what they have loaded under each id. `/broken` cannot be loaded."""

    def __init__(self) -> None:
        self.loaded: dict[int, str] = {}

    async def add_lora(self, lora: LoRARequest) -> bool:
        if lora.lora_path == "/broken":
            raise ValueError("its rank is too large")
        if lora.lora_int_id not in self.loaded or lora.load_inplace:
            self.loaded[lora.lora_int_id] = lora.lora_path
        return True


def client_of(engines: Engines, **more: Any) -> SimpleNamespace:
    model = SimpleNamespace(model="tiny")
    return SimpleNamespace(add_lora=engines.add_lora, model_config=model, renderer=None, input_processor=None, **more)


class FrontEnds:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines = Engines()
        self.all: list[tuple[OpenAIServingModels, SharedState]] = []

    async def start(self, *static: str) -> OpenAIServingModels:
        """One more, with these adapters on its command line."""
        client = client_of(self.engines)
        modules = [LoRAModulePath(name=name, path=f"/{name}") for name in static]
        serving = OpenAIServingModels(client, [BaseModelPath("tiny", "/tiny")], lora_modules=modules)  # type: ignore[arg-type]
        shared_state = SharedState(StateFile(str(self.folder)), Members(), None, None, None)  # type: ignore[arg-type]
        await serving.init_static_loras()  # type: ignore[no-untyped-call]
        self.all.append((serving, shared_state))
        shared_state.tell_others = lambda: self._tell(shared_state)
        await share_adapters(serving, shared_state)
        return serving

    async def _tell(self, teller: SharedState) -> None:
        for _, shared_state in self.all:
            if shared_state is not teller:
                await shared_state.follow()

    def weights(self, name: str) -> set[str | None]:
        """What all front ends would have a request for the adapter computed with."""
        return {self._weights(serving, name) for serving, _ in self.all}

    def _weights(self, serving: OpenAIServingModels, name: str) -> str | None:
        lora = serving.lora_requests.get(name)
        return None if lora is None else self.engines.loaded[lora.lora_int_id]


@pytest.fixture
def fronts(tmp_path: Path) -> FrontEnds:
    return FrontEnds(tmp_path)


def load(name: str, path: str = "", **options: Any) -> LoadLoRAAdapterRequest:
    return LoadLoRAAdapterRequest(lora_name=name, lora_path=path or f"/{name}", **options)


async def test_adapters_loaded_by_different_front_ends_are_different_ones_everywhere(fronts: FrontEnds) -> None:
    one, other = await fronts.start(), await fronts.start()
    assert "Success" in await one.load_lora_adapter(load("alpha"))
    assert "Success" in await other.load_lora_adapter(load("beta"))
    assert fronts.weights("alpha") == {"/alpha"}
    assert fronts.weights("beta") == {"/beta"}
    again = await one.load_lora_adapter(load("beta", "/else"))
    assert isinstance(again, ErrorResponse)
    assert "already been" in again.error.message


async def test_unloaded_by_one_is_gone_from_all_and_its_id_is_not_used_again(fronts: FrontEnds) -> None:
    one, other = await fronts.start(), await fronts.start()
    await one.load_lora_adapter(load("alpha"))
    assert "Success" in await other.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name="alpha"))
    assert fronts.weights("alpha") == {None}
    await one.load_lora_adapter(load("gamma"))
    await other.load_lora_adapter(load("alpha", "/other-alpha"))
    assert fronts.weights("gamma") == {"/gamma"}
    assert fronts.weights("alpha") == {"/other-alpha"}
    assert isinstance(await one.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name="none")), ErrorResponse)


async def test_adapter_that_cannot_be_loaded_is_known_to_nobody(fronts: FrontEnds) -> None:
    one, other = await fronts.start(), await fronts.start()
    assert isinstance(await one.load_lora_adapter(load("bad", "/broken")), ErrorResponse)
    await other.load_lora_adapter(load("good"))
    assert fronts.weights("bad") == {None}
    assert fronts.weights("good") == {"/good"}


async def test_loaded_anew_in_place_is_new_everywhere_and_not_loaded_with_every_step(fronts: FrontEnds) -> None:
    one, other = await fronts.start(), await fronts.start()
    await one.load_lora_adapter(load("alpha"))
    await other.load_lora_adapter(load("alpha", "/newer", load_inplace=True))
    assert fronts.weights("alpha") == {"/newer"}
    assert [serving.lora_requests["alpha"].lora_path for serving in (one, other)] == ["/newer"] * 2
    assert not any(serving.lora_requests["alpha"].load_inplace for serving in (one, other))
    assert isinstance(await one.load_lora_adapter(load("alpha", "/broken", load_inplace=True)), ErrorResponse)
    assert [serving.lora_requests["alpha"].lora_path for serving in (one, other)] == ["/newer"] * 2
    (adapter,) = fronts.all[0][1].file.read().adapters or ()
    assert adapter.generation == 2, "instances that have the broken one take the old one again"


async def test_those_of_the_command_line_count_once_and_a_restarted_front_end_learns_what_has_changed(
    fronts: FrontEnds,
) -> None:
    one = await fronts.start("north")
    await fronts.start("north")
    await one.load_lora_adapter(load("alpha"))
    await one.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name="north"))
    restarted = await fronts.start("north")
    assert set(restarted.lora_requests) == {"alpha"}
    await restarted.load_lora_adapter(load("beta"))
    for name in ("alpha", "beta"):
        assert fronts.weights(name) == {f"/{name}"}


async def test_restarted_front_end_loads_no_adapter_of_the_command_line_again(
    fronts: FrontEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ids would be counted from 1, and may be other ones' by now."""
    await fronts.start("north", "south")
    shared_state = fronts.all[0][1]
    modules = [LoRAModulePath(name="audio", path="/audio")]  # of --default-mm-loras: in no flag that could be left out

    async def init_app_state(llm: Any, state: Any, *_: Any) -> None:
        state.openai_serving_models = OpenAIServingModels(llm, [BaseModelPath("tiny", "/tiny")], lora_modules=modules)
        await state.openai_serving_models.init_static_loras()

    async def tasks() -> tuple[str, ...]:
        return ("generate",)

    monkeypatch.setattr(app_state, "init_app_state", init_app_state)
    monkeypatch.setattr(app, "build_app", lambda *_: FastAPI())
    llm = client_of(
        fronts.engines,
        engine_core=SimpleNamespace(shared_state=shared_state),
        get_supported_tasks=tasks,
        follow=lambda _: None,
    )
    board = SimpleNamespace(spec=SimpleNamespace(admin_socket=socket.socket()), client=None)
    fronts.engines.loaded.clear()  # as of an instance that starts at the same time
    made = await serve._make_app(argparse.Namespace(), llm, board, None)  # type: ignore[arg-type]
    board.spec.admin_socket.close()
    assert fronts.engines.loaded == {}
    assert set(made.state.openai_serving_models.lora_requests) == {"north", "south"}


class Finder:
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        return None if lora_name == "none" else LoRARequest(lora_name, 1, f"/found/{lora_name}")


async def test_adapters_that_a_plugin_finds_are_shared_as_well(fronts: FrontEnds) -> None:
    one, other = await fronts.start(), await fronts.start()
    for serving in (one, other):
        serving.lora_resolvers = [Finder()]  # type: ignore[list-item]
    assert isinstance(await one.resolve_lora("alpha"), LoRARequest)
    assert isinstance(await other.resolve_lora("beta"), LoRARequest)
    assert isinstance(await other.resolve_lora("alpha"), LoRARequest)
    assert isinstance(await other.resolve_lora("none"), ErrorResponse)
    for name in ("alpha", "beta"):
        assert fronts.weights(name) == {f"/found/{name}"}


async def test_model_that_nobody_knows_changes_nothing_for_anybody(fronts: FrontEnds) -> None:
    """Or instances that start would have to be brought to a new version for ever."""
    one = await fronts.start()
    shared_state = fronts.all[0][1]
    version = shared_state.file.read().version
    assert isinstance(await one.resolve_lora("gpt-5"), ErrorResponse)
    for finders in [], [Finder()]:
        one.lora_resolvers = finders  # type: ignore[assignment]
        async with shared_state.file.changing(), asyncio.timeout(10):
            assert isinstance(await one.resolve_lora("none"), ErrorResponse), "nobody's change is waited for"
    assert shared_state.file.read().version == version


async def test_front_end_that_is_restarted_waits_for_nobodys_change(fronts: FrontEnds) -> None:
    """Loading an adapter on an instance that hangs takes until that is given up."""
    await fronts.start("north")
    async with fronts.all[0][1].file.changing(), asyncio.timeout(10):
        restarted = await fronts.start()
    assert set(restarted.lora_requests) == {"north"}


async def test_adapter_whose_client_goes_away_meanwhile_is_known_to_all_or_nobody(fronts: FrontEnds) -> None:
    one = await fronts.start()
    await fronts.start()
    one.lora_resolvers = [Finder()]  # type: ignore[list-item]
    (_, shared_state), tell, telling = fronts.all[0], fronts.all[0][1].tell_others, asyncio.Event()

    async def slowly() -> None:
        telling.set()
        await asyncio.sleep(0.05)
        await tell()

    shared_state.tell_others = slowly
    asked = asyncio.create_task(one.resolve_lora("alpha"))
    await telling.wait()
    asked.cancel()
    await asyncio.gather(*shared_state._changes)
    assert fronts.weights("alpha") == {"/found/alpha"}
