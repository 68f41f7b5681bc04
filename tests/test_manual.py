"""The manual page: every command and flag is in it, and nothing in it is lost on the way through troff."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess

import pytest

from llumnix.cli import COMMANDS, main
from llumnix.manual import roff


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["man"]) == 0
    return capsys.readouterr().out


def test_every_command_and_flag_is_in_it(page: str) -> None:
    plain = re.sub(r"\\f[BIR]", "", page).replace("\\-", "-")
    for name, command in COMMANDS.items():
        assert f".SS llumnix {name}\n" in plain
        for action in command.parser()._actions:
            if action.help != argparse.SUPPRESS:
                assert all(flag in plain for flag in action.option_strings if flag not in ("-h", "--help"))


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_troff_has_nothing_to_complain_of_and_shows_it_all(page: str) -> None:
    run = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-cbou"], input=page, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    shown = re.sub(r"\s+", " ", run.stdout)
    for words in ("--log-format {text,json}", "llumnix drain", "Empty an instance by migration, then stop it."):
        assert words in re.sub("[\u2010\u2212]", "-", shown)


def test_text_is_no_instruction() -> None:
    assert roff("…") == "\\[u2026]"
    assert roff(".hidden\n'too\na\\b") == "\\&.hidden\n\\&'too\na\\eb"
