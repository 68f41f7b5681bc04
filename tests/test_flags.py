from __future__ import annotations

import dataclasses

import pytest

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.errors import UsageError
from llumnix.flags import flag_value, has_flag, parse_serve
from llumnix.policy.autoscaling import ScalingConfig


def test_no_words_give_the_defaults() -> None:
    arguments = parse_serve([])
    assert arguments.model is None
    assert arguments.engine_flags == ()
    assert (arguments.cluster, arguments.policy, arguments.migration) == (
        ClusterConfig(),
        PolicyConfig(),
        MigrationConfig(),
    )


def test_ours_are_taken_and_all_others_passed_on_in_order() -> None:
    line = "my/model --dtype float32 --instances 3 --seed -1 --no-migration --enforce-eager --max-stages=4 -tp 2"
    arguments = parse_serve(line.split())
    assert arguments.model == "my/model"
    assert arguments.engine_flags == ("--dtype", "float32", "--seed", "-1", "--enforce-eager", "-tp", "2")
    assert arguments.cluster.instances == 3
    assert not arguments.policy.migration
    assert arguments.migration.max_stages == 4


def test_model_may_come_after_our_flags() -> None:
    arguments = parse_serve(["--instances", "3", "my/model", "--dtype", "float32"])
    assert (arguments.model, arguments.engine_flags) == ("my/model", ("--dtype", "float32"))


def test_word_behind_a_foreign_flag_is_its_value() -> None:
    arguments = parse_serve(["--dtype", "float32"])
    assert (arguments.model, arguments.engine_flags) == (None, ("--dtype", "float32"))


@pytest.mark.parametrize("spelling", [["--model", "my/model"], ["--model=my/model"]])
def test_model_by_flag(spelling: list[str]) -> None:
    arguments = parse_serve([*spelling, "--dtype", "float32"])
    assert (arguments.model, arguments.engine_flags) == ("my/model", ("--dtype", "float32"))


def test_abbreviations_are_not_ours() -> None:
    assert parse_serve(["m", "--instance", "3"]).engine_flags == ("--instance", "3")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--instances 0", "--instances must be between"),
        ("--instances many", "invalid int value: 'many'"),
        ("--instances", "expected one argument"),
        ("--api-server-count 0", "--api-server-count must be between 1 and 64, not 0."),
        ("--policy best", "--policy must be one of llumnix"),
        ("--scaling perhaps", "--scaling must be off, advise or on, not perhaps"),
        ("--scaling on", r"--instances \(2\) must lie between --min-instances \(1\) and --max-instances \(1\)"),
        ("--scaling on --max-instances 4 --min-instances 3", "must lie between"),
        ("--scaling on --scale-in-freeness 1", "--scale-in-freeness"),
        ("--drain-timeout-s -1", "--drain-timeout-s must not be negative"),
        ("--relief-steps -1", "--relief-steps must not be negative"),
        ("--admin-port 70000", "--admin-port must be below 65536"),
        ("--migrate-out-freeness 5 --migrate-in-freeness 1", "requests would bounce"),
    ],
)
def test_bad_words_are_told_in_a_sentence(line: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        parse_serve(line.split())


@pytest.mark.parametrize("config", [ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig])
def test_every_knob_has_a_flag(config: type) -> None:
    for field in dataclasses.fields(config):
        flag = "--" + field.name.replace("_", "-")
        words = [flag] if isinstance(field.default, bool) else [flag, str(field.default)]
        if field.default not in (None, ""):
            assert parse_serve(words).engine_flags == ()


def test_limits_of_scaling_do_not_matter_while_it_is_off() -> None:
    assert parse_serve(["--max-instances", "1"]).cluster.instances == 2
    arguments = parse_serve(["--scaling", "advise", "--max-instances", "8", "--min-instances", "2"])
    assert (arguments.scaling.min_instances, arguments.scaling.max_instances) == (2, 8)


@pytest.mark.parametrize(
    "flags", [("--port", "1", "--port", "80"), ("--port=80",), ("--a", "x", "--port", "80", "--b")]
)
def test_value_of_a_foreign_flag(flags: tuple[str, ...]) -> None:
    assert flag_value(flags, "--port") == "80"


def test_foreign_flags_with_underscores() -> None:
    assert flag_value(["--max_model_len", "8"], "--max-model-len") == "8"
    assert has_flag(["--no_enforce_eager"], "--enforce-eager")
    assert not has_flag(["--enforce", "--host-name"], "--enforce-eager", "--host")
