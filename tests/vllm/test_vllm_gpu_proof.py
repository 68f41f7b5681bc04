"""`benchmarks/gpu_proof.py` with small models on a CPU: all of it but the GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llumnix.sim.profiles.file import load_profile

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[2]


def proof(out: Path, *words: str) -> dict[str, Any]:
    script = str(ROOT / "benchmarks" / "gpu_proof.py")
    command = [sys.executable, script, "--device", "cpu", "--limit-s", "450", "--out", str(out), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    told: dict[str, Any] = json.loads((out / "gpu_proof.json").read_text())
    return told | {"measured": {figure["name"]: figure["measured"] for figure in told["figures"]}}


@pytest.mark.timeout(520)
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    told = proof(tmp_path)
    measured = told["measured"]
    assert measured["equality: differing tokens"] == 0
    assert measured["kill: tokens compared"] > 0
    assert measured["drain: moved"] > 0
    assert measured["downtime: moves that copied everything"] == 1
    assert sorted(map(int, told["by_length"])) == [64, 256]
    assert (tmp_path / "gpu_proof.png").stat().st_size > 1000
    assert load_profile(str(tmp_path / "cpu-llama-7b.toml")).memory.block_tokens == 32


@pytest.mark.timeout(300)
def test_a_part_runs_alone_and_with_the_other_model(tmp_path: Path) -> None:
    told = proof(tmp_path, "--model", "qwen3-8b", "--parts", "equality")
    assert told["measured"]["equality: differing tokens"] == 0
    assert not any(figure["name"].startswith("drain") for figure in told["figures"])
