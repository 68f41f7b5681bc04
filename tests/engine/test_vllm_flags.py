"""Every flag and variable of vLLM's has a decision: a new vLLM shows what it has new as undecided."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest

pytest.importorskip("vllm")

from starlette.datastructures import State

from llumnix.cluster.environment import engine_flags
from llumnix.errors import UsageError
from llumnix.flags import parse_serve
from llumnix.vllm_words import VERSION, flag_rows, installed_version, refused_variable, variable_rows

DECISIONS = {"as it is", "per instance", "ours", "refused", "here"}
SCRIPT = Path(__file__).parents[2] / "scripts" / "vllm_flags.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_flags", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_of_the_vllm_that_is_installed() -> None:
    assert (installed_version() or "").partition("+")[0] == VERSION, "run scripts/vllm_flags.py, and decide"


def test_every_flag_of_vllms_parser_is_in_the_table_as_it_is_there(script: ModuleType) -> None:
    known = [{name: row[name] for name in ("flag", "also", "takes", "values", "group")} for row in flag_rows()]
    assert known == script.installed_flags(), "run scripts/vllm_flags.py, and decide"


def test_every_variable_that_vllm_reads_is_in_the_table(script: ModuleType) -> None:
    assert [row["variable"] for row in variable_rows()] == script.installed_variables()


def test_it_is_decided_what_becomes_of_each() -> None:
    wrong = []
    for row in (*flag_rows(), *variable_rows()):
        name, refused = next(iter(row.values())), row["decision"] == "refused"
        sentence = row["note"].startswith(f"{name} ") and row["note"].endswith(".")
        if row["decision"] not in DECISIONS or (refused and not sentence) or (row["fine"] and not refused):
            wrong.append(name)
    assert not wrong


def test_ids_that_may_come_twice_are_refused() -> None:
    """Streams, moves and stories go by ids that are never used again."""
    name = "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"
    why = refused_variable({name: "1"})
    assert why is not None
    assert why.startswith(f"{name} is not for Llumnix")
    assert refused_variable({name: "0"}) is None


def test_all_flags_at_once_mean_to_vllm_what_they_mean_alone() -> None:
    """What is told apart and written anew here is what vLLM's own parser would have made of the user's own words."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    line = [
        *("--max_model_len", "1k", "-tp", "2", "-q=fp8", "--max-num-batched", "64", "--no_enable_prefix_caching"),
        *("--served-model-name", "a", "b", "--hf-token", "-O1", "-cc.mode", "0", "--middleware", "x.y"),
        *("--middleware=p.q", "--default-chat-template-kwargs", '{"a": "b c"}', "--api-key", "k", "-ep"),
        '--override-generation-config={"a": 1}',
    ]
    parser = make_arg_parser(FlexibleArgumentParser(add_help=False))  # type: ignore[no-untyped-call]
    theirs = vars(parser.parse_args(["m", *line]))
    arguments = parse_serve([*line, "--seed=-3", "m"])
    ours = vars(parser.parse_args([arguments.model or "", *arguments.engine_flags]))
    assert ours.pop("seed") == -3
    theirs.pop("seed")
    assert ours == theirs


def test_the_queue_is_ordered_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from llumnix import tiny_model
    from llumnix.engine.vllm import boot

    monkeypatch.setattr(os, "environ", {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    model = str(tiny_model.ensure())
    for words, policy in ([], "priority"), (["--scheduling-policy", "fcfs"], "fcfs"):
        flags = engine_flags(parse_serve([model, "--enforce-eager", "--dtype=float32", *words]))
        assert boot.prepare(list(flags), model).config.scheduler_config.policy == policy


def test_documents_are_compared_with_a_query_that_another_instance_has_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM by itself leaves the query in the engine that has encoded it, and that engine ends when it is elsewhere."""
    from vllm.entrypoints.pooling import factories
    from vllm.entrypoints.pooling.pooling.serving import ServingPooling
    from vllm.entrypoints.pooling.scoring.serving import ServingScores

    from llumnix import tiny_model
    from llumnix.engine.vllm import boot

    monkeypatch.setattr(os, "environ", {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    model = str(tiny_model.ensure())
    args = boot.prepare(list(engine_flags(parse_serve([model, "--enforce-eager", "--dtype=float32"]))), model).args
    monkeypatch.setattr(ServingPooling, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(ServingScores, "init_io_processor", lambda *_, **__: None)
    by_token = MagicMock(get_pooling_task=lambda _: "token_embed", architecture="")
    state = State({"openai_serving_models": MagicMock()})
    factories.init_pooling_state(MagicMock(model_config=by_token), state, args, None, ("token_embed",))
    assert state.serving_scores.io_processor_name == "late-interaction"
    with pytest.raises(UsageError, match=r"^--enable-flash-late-interaction is not for Llumnix"):
        parse_serve([model, "--enable-flash-late-interaction"])


def test_help_of_vllms_flags_tells_what_is_made_of_them() -> None:
    from llumnix.engine.vllm.front_end.vllm_help import vllm_help

    assert "--max-model-len" in vllm_help("ModelConfig".lower())
    assert "[Llumnix: 127.0.0.1 by" in " ".join(vllm_help("host").split())


def test_a_model_that_vllm_schedules_in_a_way_of_its_own_is_refused() -> None:
    from llumnix.engine.vllm import boot

    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=False, scheduler_cls="a.Diffuser"))
    with pytest.raises(UsageError, match=r"cannot serve this model: vLLM schedules it with a\.Diffuser\."):
        boot._adjust(config, SimpleNamespace(async_scheduling=None))  # type: ignore[arg-type]


def test_unknown_parser_is_told_in_one_sentence() -> None:
    from llumnix.engine.vllm.boot import check_parser

    check_parser("--reasoning-parser", "", ["b"])
    check_parser("--reasoning-parser", "b", ["b"])
    with pytest.raises(UsageError, match=r"^--reasoning-parser c is unknown, and no plugin .* may be a, b\.$"):
        check_parser("--reasoning-parser", "c", ["b", "a"])
