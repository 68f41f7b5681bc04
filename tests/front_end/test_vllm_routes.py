"""Every route of the vLLM that is installed was looked at, for servers of several processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest

pytest.importorskip("vllm")

from fastapi import FastAPI
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.tasks import SupportedTask
from vllm.utils.argparse_utils import FlexibleArgumentParser

from llumnix.engine.vllm.front_end.others_logs import warnings_still_told
from llumnix.engine.vllm.front_end.vllm_routes import ROUTES, paths, undecided

FLAGS = (
    *("--enable-fault-tolerance", "--enable-offline-docs", "--enable-tokenizer-info-endpoint", "--enable-scale-out"),
    *("--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "/tmp/profile"}'),
)
MODES = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ENABLE_COHERE_API")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """With every route that a flag, a mode or a kind of model brings."""
    for mode in MODES:
        monkeypatch.setenv(mode, "1")
    tasks = tuple(task for kind in get_args(SupportedTask) for task in (get_args(kind) or (kind,)))
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([*FLAGS])  # type: ignore[no-untyped-call]
    model = SimpleNamespace(
        is_multimodal_model=True,
        hf_config=SimpleNamespace(architectures=[], num_labels=1),
        architecture="JinaForRanking",
        get_pooling_task=lambda tasks: "embed",
    )
    with warnings_still_told():
        built: FastAPI = build_app(args, tasks, model)  # type: ignore[arg-type]
    return built


def test_every_route_is_decided_and_no_other_is(app: FastAPI) -> None:
    assert undecided(app.routes) == []
    brought_otherwise = {"/redoc", "/cohere/v2/chat", "/cohere/v2/chat/render"}  # without a flag, with a package
    assert ROUTES.keys() - set(paths(app.routes)) - brought_otherwise == set(), "not there any more"


def test_new_route_shows(app: FastAPI) -> None:
    app.add_api_route("/v1/brand_new", lambda: None, methods=["POST"])
    assert undecided(app.routes) == ["/v1/brand_new"]
