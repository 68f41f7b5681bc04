"""Completion of command lines: what is offered where, and that bash understands the script."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from admin_answers import Install, instance_row, request_row, status_answer
from llumnix.cli import COMMANDS, main
from llumnix.shell import candidates


@pytest.fixture
def server(answer_with: Install) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        rows = [instance_row("i0", "running"), instance_row("i1", "draining")]
        return httpx.Response(200, json=status_answer(*rows) | {"requests": [request_row("cmpl-7", "i0")]})

    answer_with(answer)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ([""], [*COMMANDS, "--help", "--version"]),
        (["dra"], ["drain"]),
        (["drain", "--t"], ["--timeout-s"]),
        (["requests", "--state", ""], ["running", "waiting"]),
        (["requests", "--state", "w"], ["waiting"]),
        (["serve", "--launcher", ""], ["local", "ray"]),
        (["serve", "--log-f"], ["--log-format"]),
        (["serve", "--max-model-l"], ["--max-model-len"]),
        (["serve", "--no-enable-prefix-c"], ["--no-enable-prefix-caching"]),
        (["serve", "--instances", ""], []),
        (["serve", "--policy=inf"], ["--policy=infaas++"]),
        (["serve", "--dtype=bf"], ["--dtype=bfloat16"]),
        (["requests", "--state="], ["--state=running", "--state=waiting"]),
        (["whatif", "--re"], ["--repeats", "--requests"]),
        (["completion", ""], ["bash", "words"]),
        (["dance", "--"], []),
        ([], [*COMMANDS, "--help", "--version"]),
    ],
)
def test_what_may_stand_there_is_offered(line: list[str], offered: list[str]) -> None:
    assert candidates(line) == sorted(offered)


def test_flags_that_are_not_for_people_are_not_offered() -> None:
    assert "--instances" in candidates(["doctor", "--"])
    assert "--engine-module" not in candidates(["drain", "--"])


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["drain", ""], ["i0", "i1"]),
        (["drain", "--wait", ""], ["i0", "i1"]),
        (["drain", "--timeout-s", "3", "i"], ["i0", "i1"]),
        (["drain", "i0", ""], []),
        (["migrate", ""], ["cmpl-7"]),
        (["migrate", "cmpl-7", ""], ["i0", "i1"]),
        (["requests", "--instance", ""], ["i0", "i1"]),
    ],
)
def test_ids_are_those_of_the_server_that_runs(line: list[str], offered: list[str]) -> None:
    assert candidates(line) == offered


@pytest.mark.parametrize(
    "named",
    ["cmpl-$(reboot)", "cmpl-`reboot`", "cmpl-a;reboot", "cmpl-*", "cmpl-a b", "cmpl-a\nb", "cmpl-'", "~root", "--log"],
)
def test_an_id_that_a_shell_would_run_is_not_offered(answer_with: Install, named: str) -> None:
    rows = [request_row(named, "i0"), request_row("cmpl-a:b@c/d=e,f+g.h%i_j-k", "i0")]
    answer_with(lambda request: httpx.Response(200, json={"requests": rows}))
    assert candidates(["explain", ""]) == ["cmpl-a:b@c/d=e,f+g.h%i_j-k"]


def test_no_ids_where_no_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLUMNIX_URL", "http://127.0.0.1:9")
    assert candidates(["drain", ""]) == []


def test_ids_are_those_of_the_server_that_the_line_names(answer_with: Install) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.url.host} {request.headers['authorization']}")
        return httpx.Response(200, json=status_answer(instance_row("i7")))

    answer_with(answer)
    assert candidates(["drain", "--url", "http://there:9000", "--api-key=k", ""]) == ["i7"]
    assert asked == ["there Bearer k"]
    assert candidates(["drain", "--url", "nowhere", ""]) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("llumnix requests --st", ["--state"]),
        ("llumnix undrain --", ["--api-key", "--help", "--url"]),
        ("llumnix requests --state=wai", ["waiting"]),
        ("llumnix requests --state ", ["running", "waiting"]),
        ("llumnix explain --log ", []),  # then bash offers files
    ],
)
def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: str, offered: list[str]) -> None:
    """What comes in place of the part behind the last = or :, as bash has it."""
    (tmp_path / "llumnix").write_text(f'#!/bin/sh\nexec {sys.executable} -m llumnix "$@"\n')
    assert bash_offers(capsys, tmp_path, typed) == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_makes_no_file_names_of_what_is_offered(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`*`, for one."""
    (tmp_path / "llumnix").write_text("#!/bin/sh\nprintf '%s\\n' 'cmpl-*' 'cmpl-?'\n")
    (tmp_path / "cmpl-7").touch()
    assert bash_offers(capsys, tmp_path, "llumnix explain cmpl-") == ["cmpl-*", "cmpl-?"]


def bash_offers(capsys: pytest.CaptureFixture[str], folder: Path, typed: str) -> list[str]:
    """In a folder with a `llumnix`."""
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    (folder / "llumnix").chmod(0o755)
    tab = f"COMP_LINE={shlex.quote(typed)}; COMP_POINT={len(typed)}; _llumnix"
    asks = f'PATH={folder}:$PATH\n{script}\n{tab}\nfor word in "${{COMPREPLY[@]}}"; do echo "$word"; done'
    run = subprocess.run(["bash", "-c", asks], capture_output=True, text=True, check=True, cwd=folder)
    return run.stdout.splitlines()
