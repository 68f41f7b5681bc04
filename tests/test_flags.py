from __future__ import annotations

import dataclasses
import re
from math import inf, nan
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.errors import UsageError
from llumnix.flags import DEFAULT_ENGINE, flag_value, parse_serve, serve_parser, vocabulary
from llumnix.roles_config import RolesConfig

NUMBERS = (int, float, float | None)


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
    given = ("--dtype", "float32", "--seed", "-1", "--enforce-eager", "--tensor-parallel-size", "2")
    assert arguments.engine_flags == given
    assert arguments.cluster.instances == 3
    assert not arguments.policy.migration
    assert arguments.migration.max_stages == 4


def test_model_may_come_after_our_flags() -> None:
    arguments = parse_serve(["--instances", "3", "my/model", "--dtype", "float32"])
    assert (arguments.model, arguments.engine_flags) == ("my/model", ("--dtype", "float32"))


def test_model_may_come_after_all_flags() -> None:
    line = (
        "--instances 2 --dtype float32 --enforce-eager --seed -1 --enable-lora --middleware a.b --max-stages 4 my/model"
    )
    arguments = parse_serve(line.split())
    assert arguments.model == "my/model"
    assert arguments.engine_flags[-3:] == ("--enable-lora", "--middleware", "a.b")


def test_word_behind_a_flag_that_takes_a_value_is_that_value() -> None:
    arguments = parse_serve(["--dtype", "float32"])
    assert (arguments.model, arguments.engine_flags) == (None, ("--dtype", "float32"))


def test_flags_of_an_engine_that_nobody_knows_take_the_words_behind_them() -> None:
    arguments = parse_serve(["m", "--engine-module", "other", "--odd", "a", "b", "--instances", "3", "--even"])
    assert (arguments.model, arguments.engine_flags) == ("m", ("--odd", "a", "b", "--even"))
    assert arguments.cluster.instances == 3


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("--max_model_len 8", ("--max-model-len", "8")),
        ("--max_model_len=8", ("--max-model-len=8",)),
        ("--max-model 8", ("--max-model-len", "8")),  # cut short
        ("-tp 2 -q fp8", ("--tensor-parallel-size", "2", "--quantization", "fp8")),
        ("--device-memory-utilization .5", ("--gpu-memory-utilization", ".5")),
        ("--no_enforce_eager", ("--no-enforce-eager",)),
        ("-O2", ("--optimization-level=2",)),
        ("-O=2", ("--optimization-level=2",)),
        ("--compilation_config.pass_config.x_y true", ("--compilation-config.pass_config.x_y", "true")),
        ("-cc.mode=3", ("--compilation-config.mode=3",)),
        ("--served-model-name a b --enforce-eager", ("--served-model-name", "a", "b", "--enforce-eager")),
        ("--hf-token --enforce-eager", ("--hf-token", "--enforce-eager")),
        ("--data-parallel-size 1", ("--data-parallel-size", "1")),  # what vLLM does anyway
        ("--no-numa-bind", ("--no-numa-bind",)),
    ],
)
def test_flags_of_vllm_are_read_as_vllm_reads_them(line: str, flags: tuple[str, ...]) -> None:
    assert parse_serve(["m", *line.split()]).engine_flags == flags


@pytest.mark.parametrize("words", ["--no-enable-chunked-prefill", "--disable-chunked-mm-input"])
def test_target_for_tokens_is_refused_where_prompts_are_computed_whole(words: str) -> None:
    assert parse_serve(["--tpot-target-ms", "30"]).policy.roles.tpot_target_s == 0.030
    with pytest.raises(UsageError, match=f"^--tpot-target-ms is for engines that .* with {words} they do not.$"):
        parse_serve(["--tpot-target-ms", "30", words])


def test_target_for_tokens_is_a_time() -> None:
    with pytest.raises(UsageError, match=r"^--tpot-target-ms must not be negative\.$"):
        parse_serve(["--tpot-target-ms=-1"])


def test_our_flags_may_have_underscores_and_vllms_name_for_the_end() -> None:
    arguments = parse_serve(["--max_stages", "4", "--no_migration", "--shutdown-timeout", "7"])
    assert arguments.migration.max_stages == 4
    assert not arguments.policy.migration
    assert arguments.cluster.shutdown_timeout_s == 7


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--instnces 4", "There is no flag --instnces; did you mean --instances?"),
        ("--instance 3", "There is no flag --instance; did you mean --instances?"),
        ("--max-modl-len=8", "There is no flag --max-modl-len; did you mean --max-model-len?"),
        ("--no-enforce-eagr", "There is no flag --no-enforce-eagr; did you mean --no-enforce-eager?"),
        ("--compilation-confg.mode 3", "There is no flag --compilation-confg; did you mean --compilation-config?"),
        ("--xyzzy", "There is no flag --xyzzy; `llumnix serve --help=all` lists them."),
        ("--max-num-batched", "--max-num-batched-tokens needs a value."),
        ("--max-num", "--max-num could be --max-num-active-seqs or "),
        ("--enforce-eager=yes", "--enforce-eager takes no value."),
        ("--dtype --enforce-eager", "--dtype needs a value."),
        ("m --enforce-eager float32", "'float32' is neither a flag nor a flag's value; the model is m already."),
        (
            "--data-parallel-size 2",
            "--data-parallel-size is not for Llumnix: say --instances instead; --enable-expert-",
        ),
        ("-dp=2", "--data-parallel-size is not for Llumnix: say --instances instead; "),
        ("--headless", "--headless is not for Llumnix: "),
        ("--scheduler-cls my.Scheduler", "--scheduler-cls is not for Llumnix, whose own scheduler class "),
        ("--weight-transfer-config.backend nccl", "--weight-transfer-config is not for Llumnix: "),
        ("--distributed-executor-backend ray", "--distributed-executor-backend must be mp or uni: "),
        ("--dtype flot16", "--dtype cannot be 'flot16'; did you mean float16?"),
        ("--runner=xyzzy m", "--runner cannot be 'xyzzy'; it may be auto, draft, generate, pooling."),
        ("--max-num-seqs 1e3", "--max-num-seqs must be a whole number, not '1e3'."),
        ("--gpu-memory-utilization 90%", "--gpu-memory-utilization must be a number, not '90%'."),
        ("--collect-detailed-traces model wrker", "--collect-detailed-traces cannot be 'wrker'; did you mean worker?"),
    ],
)
def test_what_is_wrong_with_a_flag_of_vllm_is_told_at_once(line: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_serve(line.split())
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    "line", ["--seed -1", "--max-log-len None", "--max-num-seqs 1_000", "--collect-detailed-traces all model"]
)
def test_value_that_vllm_takes_is_not_refused(line: str) -> None:
    parse_serve(["m", *line.split()])


def test_another_vllm_may_take_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llumnix.vllm_words.installed_version", lambda: "0.32.7")
    assert parse_serve(["m", "--dtype", "float4"]).engine_flags == ("--dtype", "float4")


def test_another_vllm_may_know_more_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llumnix.vllm_words.installed_version", lambda: "0.32.7")
    assert parse_serve(["m", "--brand-new", "3", "--enforce-eager"]).engine_flags == (
        "--brand-new",
        "3",
        "--enforce-eager",
    )


@pytest.mark.parametrize("spelling", [["--model", "my/model"], ["--model=my/model"]])
def test_model_by_flag(spelling: list[str]) -> None:
    arguments = parse_serve([*spelling, "--dtype", "float32"])
    assert (arguments.model, arguments.engine_flags) == ("my/model", ("--dtype", "float32"))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--instances 0", "--instances must be between"),
        ("--instances 99999999999", "^--instances must be between 1 and 4096, not 99999999999.$"),
        ("--relief-steps 99999999999", "^--relief-steps must be a whole number up to 1000000000, not 99999999999.$"),
        ("--pace-gain 1e30", r"^--pace-gain must be a number up to 1e\+09, not 1e\+30.$"),
        ("--drain-timeout-s inf", r"^--drain-timeout-s must be a number up to 1e\+09 \(never\), not inf.$"),
        ("--instances many", "invalid int value: 'many'"),
        ("--instances", "--instances needs a value."),
        ("--api-server-count 0", "--api-server-count must be between 1 and 64, not 0."),
        ("--policy best", "--policy must be one of llumnix"),
        ("--scaling perhaps", "--scaling must be off, advise or on, not perhaps"),
        ("--scaling on", r"--instances \(2\) must lie between --min-instances \(1\) and --max-instances \(1\)"),
        ("--scaling on --max-instances 4 --min-instances 3", "must lie between"),
        ("--scaling on --scale-in-freeness 1", "--scale-in-freeness"),
        ("--drain-timeout-s -1", "--drain-timeout-s must not be negative"),
        ("--relief-steps -1", "--relief-steps must not be negative"),
        ("--pace-gain 1.01", "--pace-gain must be 0 or at least 1.1"),
        ("--admin-port 99999999999", "--admin-port must be below 65536"),
        ("--migrate-out-freeness 5 --migrate-in-freeness 1", "requests would bounce"),
    ],
)
def test_bad_words_are_told_in_a_sentence(line: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        parse_serve(line.split())


CONFIGS = [ClusterConfig, MigrationConfig, PolicyConfig, RolesConfig, ScalingConfig]


@pytest.mark.parametrize(
    ("config", "name"),
    [(config, name) for config in CONFIGS for name, kind in get_type_hints(config).items() if kind in NUMBERS],
)
@pytest.mark.parametrize("value", [inf, -inf, nan, 10**30])
def test_number_that_no_message_could_carry_is_refused(config: type, name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} must be (a .*number up to 1|between 1|below 6)"):
        config(**{name: value})


def test_no_end_can_be_said_with_a_number() -> None:
    cluster = ClusterConfig(step_timeout_s=1e9, start_timeout_s=1e9, drain_timeout_s=1e9, shutdown_timeout_s=1e9)
    assert msgspec.json.decode(msgspec.json.encode(cluster), type=ClusterConfig) == cluster


@pytest.mark.parametrize("config", CONFIGS)
def test_every_knob_has_a_flag(config: type) -> None:
    ours = vocabulary(serve_parser(), DEFAULT_ENGINE).ours
    for field in (each for each in dataclasses.fields(config) if each.metadata):
        assert "--" + field.name.replace("_", "-") in ours


PATHS = [each.name for each in dataclasses.fields(ClusterConfig) if each.metadata["path"]]


def test_every_knob_that_is_a_file_or_a_folder_is_known_as_a_path() -> None:
    configs = (ClusterConfig, PolicyConfig, MigrationConfig, ScalingConfig, RolesConfig)
    knobs = [each for config in configs for each in dataclasses.fields(config) if each.metadata]
    told = [each.name for each in knobs if re.search(r"^(.* )?(file|folder) (for|with)", each.metadata["help"].lower())]
    assert told == PATHS == ["classes", "decision_log", "record", "log_dir"]


@pytest.mark.parametrize("name", PATHS)
def test_paths_may_begin_with_a_home_on_the_command_line_and_in_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").write_text("classes: {a: {}}\nothers: {classes: [a]}")
    (tmp_path / "flags.yaml").write_text(f"{name}: ~/x")
    for words in ([f"--{name.replace('_', '-')}=~/x"], ["--config=~/flags.yaml"]):
        assert getattr(parse_serve(words).cluster, name) == str(tmp_path / "x")
    assert getattr(parse_serve([f"--{name}="]).cluster, name) == ""


def test_model_may_be_in_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    assert parse_serve(["--model=~/model"]).model == "/somebody/model"
    assert parse_serve(["org/~model"]).model == "org/~model"


def test_limits_of_scaling_count_when_it_only_advises() -> None:
    arguments = parse_serve(["--scaling", "advise", "--max-instances", "8", "--min-instances", "2"])
    assert (arguments.scaling.min_instances, arguments.scaling.max_instances) == (2, 8)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        *(
            (f"--{name} 1", f"--{name} is for auto-scaling, which is off: say --scaling on or --scaling advise.")
            for name in ("min-instances", "max-instances", "scale-out-freeness", "scale-in-freeness", "scale-window-s")
        ),
        ("--max_instances=1", "--max-instances is for auto-scaling, "),
        ("--scaling off --max-instances 4", "--max-instances is for auto-scaling, "),
        *(
            (
                f"--{name} 1 --no-migration",
                f"--{name} is for requests that move by themselves, and with --no-migration ",
            )
            for name in (
                *("migrate-out-freeness", "migrate-in-freeness", "max-migrations-per-instance", "relief-steps"),
                "pace-gain",
            )
        ),
        (
            "--policy round-robin --migrate-in-freeness 4",
            "--migrate-in-freeness is for requests that move by themselves",
        ),
        ("--policy llumnix-paper --relief-steps 4", "--relief-steps is for policies that make room, "),
        ("--policy llumnix-paper --pace-gain 2", "--pace-gain is for policies that look at pace"),
        ("--policy llumnix-base --priority-target-tokens 9", "--priority-target-tokens is for policies that know "),
        ("--verbose --log-dir logs", "--verbose has every process write to the console, --log-dir to files."),
        ("--record-mb 9", "--record-mb is for --record."),
        ("--record-keep-mb 9000", "--record-keep-mb is for --record."),
        ("--record runs --record-keep-mb 9", "--record-keep-mb 9 has no room for a run of --record-mb 512."),
        ("--ray-address auto", "--ray-address is for --launcher ray."),
        ("--placement spread", "--placement is for --launcher ray."),
        ("--displace --scheduling-policy fcfs", "--displace is for instances that know priorities"),
        ("--scheduling_policy=fcfs --displace", "--displace is for instances that know priorities"),
        ("--admin-allowed-hosts proxy --api-key k", "--admin-allowed-hosts is for servers without an API key"),
    ],
)
def test_flag_that_counts_only_with_another_one_is_refused_without_it(line: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_serve(line.split())
    assert str(error.value).startswith(sentence)


def test_allowed_hosts_do_nothing_beside_a_key_in_the_environment_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "k")
    with pytest.raises(UsageError, match="is for servers without an API key"):
        parse_serve(["--admin-allowed-hosts", "proxy"])


@pytest.mark.parametrize("line", ["--no-displace --scheduling-policy fcfs", "--displace --scheduling-policy priority"])
def test_displacing_may_be_said_where_it_is_so(line: str) -> None:
    assert parse_serve(line.split()).policy.displace == line.startswith("--displace")


def test_flags_of_moves_that_count_without_moves_of_the_policys_own() -> None:
    """Drains and moves by hand remain."""
    line = "--no-migration --max-outgoing 3 --max-stages 4 --pairing-interval-s 0.2 --request-cooldown-s 2"
    assert parse_serve(line.split()).migration.max_outgoing == 3


@pytest.mark.parametrize(
    "flags", [("--port", "1", "--port", "80"), ("--port=80",), ("--a", "x", "--port", "80", "--b")]
)
def test_value_of_a_foreign_flag(flags: tuple[str, ...]) -> None:
    assert flag_value(flags, "--port") == "80"
