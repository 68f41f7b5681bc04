"""A run of tests that is ended from outside, what a killed one left, and one that could not try everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from two_machines import ray_folder

pytestmark = pytest.mark.live

ENDED = """
import os, pathlib, signal, time
import pytest

@pytest.fixture
def file():
    path = pathlib.Path("left")
    path.touch()
    yield
    os.kill(os.getpid(), signal.SIGTERM)
    path.unlink()

def test_one_that_is_ended(file):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
SKIPS = """
import pytest

def test_one_that_cannot_be_tried():
    pytest.skip("{why}")
"""


def run(folder: Path, test: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider"]
    usual = {name: value for name, value in os.environ.items() if name != "CI"}
    ours = {"PYTHONPATH": f"{Path(__file__).parent}:{usual.get('PYTHONPATH', '')}"}
    return subprocess.run(
        command, cwd=folder, env=usual | ours | environment, capture_output=True, text=True, check=False, timeout=100
    )


def test_run_that_is_ended_tidies_up_and_tells_what_it_found(tmp_path: Path) -> None:
    ended = run(tmp_path, ENDED)
    assert ended.returncode == pytest.ExitCode.INTERRUPTED, ended.stdout + ended.stderr
    assert "KeyboardInterrupt" in ended.stdout
    assert not (tmp_path / "left").exists()


def test_rays_files_that_a_killed_run_left_go_when_another_begins() -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    left = Path(f"/tmp/ray-{killed.pid}-left")
    left.mkdir()
    killed.wait()
    mine, others = Path(ray_folder()), Path(ray_folder())
    try:
        assert not left.exists()
        assert mine.exists(), "whose run goes on"
    finally:
        mine.rmdir()
        others.rmdir()


@pytest.mark.parametrize(
    ("why", "environment", "code"),
    [
        ("there is no kubectl", {}, pytest.ExitCode.OK),
        ("there is no kubectl", {"CI": "true"}, pytest.ExitCode.TESTS_FAILED),
        ("nixl-cu13 is not installed", {"CI": "true"}, pytest.ExitCode.OK),
    ],
)
def test_what_is_skipped_is_no_success_where_a_change_is_judged(
    tmp_path: Path, why: str, environment: dict[str, str], code: pytest.ExitCode
) -> None:
    ended = run(tmp_path, SKIPS.format(why=why), **environment)
    assert ended.returncode == code, ended.stdout + ended.stderr
