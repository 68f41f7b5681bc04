"""A run of tests that is ended from outside, and what a killed one left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from two_machines import ray_folder

pytestmark = pytest.mark.live

ENDED = """
import os, pathlib, signal, sys, time
import pytest
from frame.server import ServerProcess

@pytest.fixture
def file():
    path = pathlib.Path("left")
    path.touch()
    ServerProcess([sys.executable, "-c", "pass"], [], pathlib.Path("console"), os.environ).process.wait()
    yield
    os.kill(os.getpid(), signal.SIGTERM)
    path.unlink()

def test_one_that_is_ended(file):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def run(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider"]
    tests = Path(__file__).parent
    path = f"{tests}:{tests.parent / 'benchmarks'}:{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
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
