"""What is packed for a GPU machine without a package index unpacks, and runs as far as it can without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.io

ROOT = Path(__file__).parent.parent
PACK = ROOT / "deploy" / "gpu" / "pack.sh"

PIP = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
while [ "$1" != --dest ]; do shift; done
touch "$2/${WHEEL:-one.whl}"
"""


LACKS_TWO = """#!/bin/sh
case "$*" in
    *"torch msgspec zmq") exit 0 ;;
    *"msgspec zmq") exit 1 ;;
    *benchmarks/*) echo "looks in $PYTHONPATH" ;;
esac
"""
"""A Python that has torch, and what is installed beside it."""

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def pip(tmp_path: Path) -> Path:
    """Loads nothing; notes what it was asked for."""
    path = tmp_path / "pip"
    path.write_text(PIP)
    path.chmod(0o755)
    return path


def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_kit_is_packed_unpacked_and_run(pip: Path, tmp_path: Path) -> None:
    packed = run(PACK, tmp_path / "kit.tar", PIP=str(pip))
    assert packed.returncode == 0, packed.stderr
    assert "1 wheels" in packed.stdout
    asked = (tmp_path / "asked").read_text()
    assert "--python-version 3.12" in asked
    assert "msgspec==" in asked
    assert "pyzmq==" in asked
    assert "--platform manylinux_2_27_x86_64" in asked, "as wheels of NVIDIA's have it, and no newer ones"
    subprocess.run(["tar", "xf", tmp_path / "kit.tar", "-C", tmp_path], check=True)
    prove = tmp_path / "kit" / "deploy" / "gpu" / "prove.sh"
    proven = run(prove, "figures", PYTHON=sys.executable, DEVICE="cpu", SERVE="no", PYTHONPATH="", OMP_NUM_THREADS="1")
    assert proven.returncode == 0, proven.stdout + proven.stderr
    assert (tmp_path / "kit" / "figures" / "quick" / "gpu_kv.json").exists()
    assert "All is as it must be" in (tmp_path / "kit" / "figures" / "quick.txt").read_text()


@pytest.mark.parametrize("out", ["figures", "/{}/figures"])
def test_wheels_of_the_kit_are_found_wherever_its_figures_go(pip: Path, tmp_path: Path, out: str) -> None:
    assert run(PACK, tmp_path / "kit.tar", PIP=str(pip)).returncode == 0
    subprocess.run(["tar", "xf", tmp_path / "kit.tar", "-C", tmp_path], check=True)
    python = tmp_path / "python"
    python.write_text(LACKS_TWO)
    python.chmod(0o755)
    kit = tmp_path / "kit"
    out = out.format(str(tmp_path).strip("/"))
    proven = run(kit / "deploy" / "gpu" / "prove.sh", out, PYTHON=str(python), DEVICE="cpu", SERVE="no", PYTHONPATH="")
    assert proven.returncode == 0, proven.stdout + proven.stderr
    assert f"looks in {kit}/src:{kit / out}/packages" in proven.stdout


def test_what_could_not_end_in_time_is_not_begun(tmp_path: Path) -> None:
    prove = ROOT / "deploy" / "gpu" / "prove.sh"
    proven = run(prove, tmp_path, PYTHON=sys.executable, DEVICE="cpu", SERVE="no", LIMIT_S="80")
    assert proven.returncode == 1
    assert "== quick was not run: it may take 240 s, and" in proven.stdout


def test_all_that_serving_takes_is_packed_if_one_says_so(pip: Path, tmp_path: Path) -> None:
    packed = run(PACK, tmp_path / "kit.tar", "--serve", PIP=str(pip), PYTHON=sys.executable, PYTHON_VERSION=HERE)
    assert packed.returncode == 0, packed.stderr
    asked = (tmp_path / "asked").read_text()
    assert "vllm==0.32.*" in asked
    assert "aiohttp>=" in asked
    assert "matplotlib>=" in asked, "for figures"
    assert "setuptools>=" in asked, "it is built there"
    assert "--no-deps" not in asked


def test_what_serving_takes_is_packed_by_the_python_that_it_is_for(pip: Path, tmp_path: Path) -> None:
    """Another one would leave out what that one needs."""
    packed = run(PACK, tmp_path / "kit.tar", "--serve", PIP=str(pip), PYTHON=sys.executable, PYTHON_VERSION="3.99")
    assert packed.returncode == 2
    assert f"There is no Python 3.99 here ({sys.executable} is {HERE})" in packed.stderr
    assert not (tmp_path / "asked").exists()


def test_pytorch_for_cpus_is_no_kit_for_a_gpu(pip: Path, tmp_path: Path) -> None:
    """pip prefers it wherever it is told of an index that has it."""
    packed = run(
        *(PACK, tmp_path / "kit.tar", "--serve"),
        PIP=str(pip),
        PYTHON=sys.executable,
        PYTHON_VERSION=HERE,
        WHEEL="torch-2.13.0+cpu-cp311.whl",
    )
    assert packed.returncode == 1
    assert "That is PyTorch for CPUs" in packed.stderr
    assert not (tmp_path / "kit.tar").exists()


@pytest.mark.parametrize("words", [(), ("--serve",), ("kit.tar", "--sreve"), ("kit.tar", "--serve", "more")])
def test_words_that_are_wrong_are_told(words: tuple[str, ...]) -> None:
    told = run(PACK, *words)
    assert told.returncode == 2
    assert "usage" in told.stderr
