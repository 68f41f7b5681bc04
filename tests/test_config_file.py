"""`--config FILE.yaml` counts as the command line does, for our flags and for vLLM's."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from llumnix.cluster.environment import child_environment, engine_flags, node_environment, workers_per_instance
from llumnix.engine.port import ONE_THREAD_TO_FORK
from llumnix.errors import UsageError
from llumnix.flags import ServeArguments, flag_value, parse_serve
from llumnix.vllm_words import VllmFlag, vllm_flags


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "f.yaml"


def parse(file: Path, text: str, *words: str) -> ServeArguments:
    file.write_text(text)
    return parse_serve([*words, "--config", str(file)])


def test_model_and_flags_of_a_file_are_not_overruled_by_those_of_the_tiny_model(file: Path) -> None:
    arguments = parse(
        file, "model: my/model\nserved-model-name: [mine, alias]\nmax_model_len: 4096\ntensor-parallel-size: 2\n"
    )
    assert arguments.model == "my/model"
    assert workers_per_instance(arguments) == 2
    assert "HF_HUB_OFFLINE" not in child_environment(arguments, {})
    flags = engine_flags(arguments)
    assert flag_value(flags, "--max-model-len") == "4096"
    assert flag_value(flags, "--served-model-name") == "mine"
    assert flag_value(flags, "--host") == "127.0.0.1"
    assert "--enforce-eager" not in flags


def test_without_a_model_the_tiny_one_is_served_as_the_file_says(file: Path) -> None:
    arguments = parse(file, "max-model-len: 512\n")
    assert arguments.model is None
    assert flag_value(engine_flags(arguments), "--max-model-len") == "512"
    assert engine_flags(arguments).count("--max-model-len") == 0
    assert flag_value(engine_flags(arguments), "--served-model-name") == "tiny"


def test_our_flags_can_stand_there(file: Path) -> None:
    arguments = parse(file, "instances: 3\nmigration: false\nscaling: off\napi-server-count: 2\nlog_dir: /var/log/x\n")
    assert (arguments.cluster.instances, arguments.front_ends, arguments.cluster.log_dir) == (3, 2, "/var/log/x")
    assert not arguments.policy.migration
    assert arguments.engine_flags == ()


def test_list_for_a_flag_of_ours_is_its_values_with_commas_between(file: Path) -> None:
    assert (
        parse(file, "admin-allowed-hosts: [a.example, b.example]\n").cluster.admin_allowed_hosts
        == "a.example,b.example"
    )


def test_auto_scaling_is_switched_on_by_a_word_that_yaml_takes_for_true(file: Path) -> None:
    assert parse(file, "scaling: on\nmax-instances: 4\n").cluster.scaling == "on"


def test_the_command_line_goes_first_wherever_it_names_the_file(file: Path) -> None:
    file.write_text("instances: 3\nseed: 1\nmodel: in/file\n")
    for words in (["m", "--instances", "4", "--seed", "2"], ["--instances=4", "--seed=2", "m"]):
        arguments = parse_serve([f"--config={file}", *words])
        assert (arguments.model, arguments.cluster.instances) == ("m", 4)
        assert arguments.engine_flag("--seed") == "2"


TAKE_ANY_WORDS = [f for f in vllm_flags().values() if f.takes in ("many", "optional") and not (f.values or f.refused)]


@pytest.mark.parametrize("flag", TAKE_ANY_WORDS, ids=lambda flag: flag.name)
def test_a_flag_at_the_end_of_the_file_leaves_the_model_alone(file: Path, flag: VllmFlag) -> None:
    values = ["a", "b"] if flag.takes == "many" else True
    file.write_text(json.dumps({flag.name.lstrip("-"): values}))
    arguments = parse_serve(["my/model", "--config", str(file)])
    assert arguments.model == "my/model"
    assert arguments.engine_flags == (flag.name, *(values if isinstance(values, list) else ()))


def test_name_of_the_file_ends_the_values_of_the_flag_before_it(file: Path) -> None:
    file.write_text("seed: 1\n")
    for named in ([f"--config={file}"], ["--config", str(file)]):
        arguments = parse_serve(["--served-model-name", "a", "b", *named, "my/model"])
        assert (arguments.model, arguments.engine_flags) == ("my/model", ("--seed=1", "--served-model-name", "a", "b"))


def test_two_dashes_end_the_values_of_a_flag() -> None:
    arguments = parse_serve(["--served-model-name", "a", "b", "--", "my/model"])
    assert (arguments.model, arguments.engine_flags) == ("my/model", ("--served-model-name", "a", "b"))


def test_behind_two_dashes_nothing_is_a_flag() -> None:
    with pytest.raises(UsageError, match="'--config' is neither a flag"):
        parse_serve(["--", "my/model", "--config"])


def test_values_of_every_kind(file: Path) -> None:
    arguments = parse(
        file,
        "enforce-eager: true\nenable_prefix_caching: false\nheadless: false\nseed: -1\nhf-token: null\n"
        "lora-modules: []\nkv-events-config: {publisher: zmq}\nmiddleware: [a.b, c.d]\nallowed-origins: ['*']\n",
        "m",
    )
    assert arguments.engine_flags == (
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--seed=-1",
        '--kv-events-config={"publisher": "zmq"}',
        "--middleware=a.b",
        "--middleware=c.d",
        '--allowed-origins=["*"]',
    )


def test_adapter_may_be_written_out(file: Path) -> None:
    arguments = parse(file, "lora-modules:\n- {name: sql, path: /loras/sql}\n- chat=/loras/chat\n", "m")
    assert arguments.engine_flags == ("--lora-modules", '{"name": "sql", "path": "/loras/sql"}', "chat=/loras/chat")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max-modl-len: 5", "There is no flag --max-modl-len; did you mean --max-model-len?"),
        ("instances: many", "Argument --instances: invalid int value: 'many'"),
        ("instances: [1, 2]", "Argument --instances: invalid int value: '1,2'"),
        ("data-parallel-size: 2", "--data-parallel-size is not for Llumnix: say --instances instead;"),
        ("headless: true", "--headless is not for Llumnix"),
        ("- a list", "must hold flags and their values, such as `max-model-len: 8192`."),
        ("a: [", "is not YAML: while parsing a flow"),
        ("config: other.yaml", "cannot name another --config."),
        ("hf-overrides: &a {x: *a}", "--hf-overrides of the config file cannot be written as JSON: Circular"),
        ("hf-overrides: {x: 2024-01-01}", "--hf-overrides of the config file cannot be written as JSON: Object of"),
        ("seed: 2024-13-01", "is not YAML: month must be in 1..12"),
        ("a: " + 2000 * "[", "is not YAML: "),
    ],
)
def test_what_is_wrong_in_it_is_told_in_a_sentence(file: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(file, text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config"], "--config needs a file."),
        (["--config", "/no/such.yaml"], "The config file /no/such.yaml cannot be read: no such file or directory."),
        (["--config", "a", "--config", "b"], "--config may be given once."),
    ],
)
def test_a_file_that_is_not_there_is_told(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_serve(words)


@pytest.mark.parametrize(
    ("words", "offline"),
    [
        ("", True),
        ("--max-model-len 512 --enforce-eager", True),
        ("--tokenizer org/name", False),
        ("--hf_config_path=org/name", False),
        ("--speculative-config.model org/name", False),
        ("--lora-modules a=org/name", False),
        ("my/model", False),
        (".", False),  # what else it names, its own files say
    ],
)
def test_the_hub_is_left_alone_only_where_everything_is_ours(words: str, offline: bool) -> None:
    assert ("HF_HUB_OFFLINE" in child_environment(parse_serve(words.split()), {})) == offline


@pytest.mark.parametrize(("words", "offline"), [([], True), (["--root-path", "/api"], False)])
def test_page_of_all_routes_needs_no_internet_but_below_a_path_where_it_would_not_find_its_parts(
    words: list[str], offline: bool
) -> None:
    """vLLM's offline page asks for `/static` and `/openapi.json`, whatever path a proxy puts before them."""
    assert ("--enable-offline-docs" in engine_flags(parse_serve(["m", *words]))) is offline
    assert "--enable-offline-docs" in engine_flags(parse_serve(["m", *words, "--enable-offline-docs"]))


def test_processes_on_cpus_have_one_thread_to_compute_with_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llumnix.cluster.environment.runs_on_cpu", lambda: True)
    made = child_environment(parse_serve([]), {"OMP_NUM_THREADS": "4"})
    assert made["NUMBA_NUM_THREADS"] == "1"
    assert made["OMP_NUM_THREADS"] == "4"


def test_parent_of_engines_on_gpus_has_no_pool_of_threads_when_it_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llumnix.cluster.environment.runs_on_cpu", lambda: False)
    made = child_environment(parse_serve([]), {})
    assert (made["OPENBLAS_NUM_THREADS"], made["OMP_NUM_THREADS"], made[ONE_THREAD_TO_FORK]) == ("1", "1", "1")
    wished = child_environment(parse_serve([]), {"OMP_NUM_THREADS": "4"})
    assert wished["OMP_NUM_THREADS"] == "4"
    assert ONE_THREAD_TO_FORK not in wished


def test_what_asks_for_no_key_listens_on_loopback_here_and_on_other_machines() -> None:
    here, there = child_environment(parse_serve([]), {}), node_environment({}, {"VLLM_LOGGING_LEVEL": "DEBUG"})
    for made in (here, there):
        listens = psutil.net_if_addrs()[made["GLOO_SOCKET_IFNAME"]]
        assert "127.0.0.1" in [each.address for each in listens]
        assert made["NCCL_SOCKET_IFNAME"] == f"={made['GLOO_SOCKET_IFNAME']}"
    own = {"GLOO_SOCKET_IFNAME": "eth7"}
    assert child_environment(parse_serve([]), own)["GLOO_SOCKET_IFNAME"] == "eth7"
    assert node_environment(own, {})["GLOO_SOCKET_IFNAME"] == "eth7"
