from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llumnix.cli import COMMANDS, main
from llumnix.paths import a_path


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)


def test_help_imports_no_engine_and_no_numbers() -> None:
    probe = "import sys; from llumnix.cli import main; main(['--help']); print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    for module in ("vllm", "torch", "numpy", "zmq", "httpx", "rich"):
        assert f"'{module}'" not in run.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_written_to_a_closed_console_lands_in_no_file_or_socket(closed: str) -> None:
    """Nor in one of a child's."""
    probe = (
        "import os, socket, sys; from llumnix.cli import main; main(['--version']); "
        "there = sys.stdin and sys.stdout and sys.stderr and all(map(os.get_inheritable, range(3))); "
        "sys.exit(not there or socket.socket().fileno() < 3)"
    )
    shell = f"{sys.executable} -c {shlex.quote(probe)} {closed}"
    subprocess.run(["sh", "-c", shell], check=True, timeout=30)


def test_launcher_imports_no_engine() -> None:
    probe = "import sys; import llumnix.cluster.launcher, llumnix.tiny_model, llumnix.flags; print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    for module in ("vllm", "torch", "transformers"):
        assert f"'{module}'" not in run.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"llumnix {command}" in capsys.readouterr().out


PATHS = [
    (command, action.option_strings[0] if action.option_strings else action.dest)
    for command, made in COMMANDS.items()
    for action in made.parser()._actions
    if action.type in (Path, a_path)
]
"""Each command with each flag or argument of it that is a path."""


@pytest.mark.parametrize(("command", "name"), PATHS)
def test_a_path_that_is_empty_is_not_the_current_folder(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a variable of the shell that is not set makes it: files with names such as summary.json are anybody's."""
    monkeypatch.chdir(tmp_path)
    free = [action for action in COMMANDS[command].parser()._actions if not action.option_strings]
    words = ["" if action.dest == name else next(iter(action.choices or ["7"])) for action in free]
    assert main([command, *words, *([f"{name}="] if name.startswith("-") else [])]) == 2
    assert "it is empty, and no path" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "name"), PATHS)
def test_a_path_may_begin_with_a_home(command: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell knows it in `--flag=~/x`."""
    monkeypatch.setenv("HOME", "/somebody")
    actions = {(action.option_strings or [action.dest])[0]: action for action in COMMANDS[command].parser()._actions}
    read = actions[name].type
    assert callable(read)
    assert read("~/x") == Path("/somebody/x")


def test_commands_that_write_files_are_among_those_with_paths() -> None:
    assert {"bench", "simulate", "reproduce", "profile", "record", "whatif", "explain"} <= {name for name, _ in PATHS}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dance"], "There is no command 'dance'; `llumnix --help` lists them."),
        (["serv"], "There is no command 'serv'; did you mean serve?"),
        (["--versio"], "There is no command '--versio'; did you mean --version?"),
        (["serve", "--instnces", "4"], "There is no flag --instnces; did you mean --instances?"),
        (["serve", "--max-modl-len", "4"], "There is no flag --max-modl-len; did you mean --max-model-len?"),
        (["status", "--ulr", "x"], "There is no flag --ulr; did you mean --url?"),
        (["bench", "--worklod=x"], "There is no flag --worklod; did you mean --workload?"),
        (["doctor", "--xyzzy"], "There is no flag --xyzzy; `llumnix serve --help=all` lists them."),
        (["serve", "--headless"], "--headless is not for Llumnix: "),
        (["serve", "--instances", "0"], "--instances must be between 1 and 4096, not 0."),
        (["serve", "--instances", "4096"], "instances need at least"),
        (["serve", "/no/such/model"], "There is no model at /no/such/model."),
        (["serve", "--port", "http"], "--port must be a whole number, not 'http'."),
        (["migrate"], "The following arguments are required: REQUEST (see llumnix migrate --help)."),
        (["restart"], "Say `llumnix restart --rolling`"),
        (["status", "--url", "nowhere"], "it must begin with http:// or https:// and name a host."),
        (["doctor", "--instances", "0"], "--instances must be between 1 and 4096, not 0."),
    ],
)
def test_bad_use_is_one_sentence_and_exit_code_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("llumnix: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert "it has no config.json" in capsys.readouterr().err


def test_missing_engine_is_told_with_what_to_do(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llumnix.vllm_words.installed_version", lambda: None)
    assert main(["serve", model]) == 2
    assert "run `make env`" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["0.30.1", "0.34.0rc1", "1.31.0", "0.3", "dev"])
def test_other_version_of_the_engine_is_refused(
    version: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llumnix.vllm_words.installed_version", lambda: version)
    assert main(["serve", model]) == 2
    told = f"vLLM {version} is installed, but 0.31, 0.32 or 0.33 is needed: `pip install 'vllm==0.32.*'`."
    assert told in capsys.readouterr().err


def test_server_that_is_not_there_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:9"]) == 1
    assert "No server answers at http://127.0.0.1:9" in capsys.readouterr().err
