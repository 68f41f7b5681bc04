"""`make env` makes the environment anew for another Python that was named, and for no other reason than that."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def make_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The program, which would make `tmp_path/env`."""
    monkeypatch.setattr(sys, "argv", ["make_env.py"])
    spec = importlib.util.spec_from_file_location("make_env", ROOT / "requirements" / "make_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", tmp_path / "env")
    monkeypatch.setattr(module, "PYTHON", tmp_path / "env" / "bin" / "python")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def have(environment: Path, version: str) -> None:
    """One whose Python says that it is of this version, and runs whatever else it is told."""
    python = environment / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)


@pytest.mark.parametrize(
    ("named", "there", "wanted", "anew"),
    [
        ("", None, OURS, True),
        ("", OURS, OURS, False),
        ("", "3.99", "3.99", False),
        ("python3", OURS, OURS, False),
        ("python3", "3.99", OURS, True),
    ],
)
def test_environment_of_another_python_is_made_anew_where_one_was_named(
    make_env: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    named: str,
    there: str | None,
    wanted: str,
    anew: bool,
) -> None:
    monkeypatch.setenv("PYTHON", named)
    if there is not None:
        have(tmp_path / "env", there)
    run: list[list[str]] = []
    monkeypatch.setattr(make_env, "run", lambda command, _: run.append(command))
    monkeypatch.setattr(make_env, "install_torch", lambda _: None)
    monkeypatch.setattr(make_env, "install", lambda *_: None)
    monkeypatch.setattr(make_env, "LOCKS", ())
    assert make_env.version_wanted() == wanted
    make_env.make("2.13.0")
    assert any("--clear" in command for command in run) == anew
