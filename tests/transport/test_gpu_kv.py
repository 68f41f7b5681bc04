"""`benchmarks/gpu_kv.py` on CPU tensors: all of its parts that need no GPU, where there is little more than torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.cache import Cache, Shape
from gpu.exactness import LAYOUTS
from gpu.rows import problems

ROOT = Path(__file__).parents[2]

ONLY_TORCH = """
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"vllm", "psutil", "rich", "aiohttp", "httpx", "yaml", "ray", "uvloop"}:
            raise ModuleNotFoundError(f"{name} is not on that machine")
sys.meta_path.insert(0, Lacking())
"""


def test_every_part_runs_where_torch_numpy_msgspec_and_pyzmq_are_all_there_is(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ONLY_TORCH)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_kv.py"), "--device", "cpu", "--out", str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "gpu_kv.json").read_text())
    assert found["problems"] == []
    rows: list[dict[str, Any]] = found["rows"]
    assert {row["part"] for row in rows} == {
        "machine", "exact", "bandwidth", "hostside", "ipc", "slowdown", "hazards", "death",
    }  # fmt: skip
    exact = [row for row in rows if row["part"] == "exact"]
    assert {row["layout"] for row in exact} == set(LAYOUTS)
    assert sum(row["blocks"] for row in exact) > 500
    (death,) = [row for row in rows if row["part"] == "death"]
    assert death["reason"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_wrong_byte_is_seen(layout: str) -> None:
    cache = Cache(Shape(layers=3, heads=2, head_size=4, tokens=4), 6, layout, torch.device("cpu"))
    cache.fill(range(6))
    assert cache.wrong([1, 4], [1, 4]) == 0
    assert cache.wrong([1, 4], [1, 3]) == 1
    with torch.inference_mode():
        cache.layers[2][4, 1, 3, 7] += 1
    assert cache.wrong([1, 4], [1, 4]) == 1


def test_what_must_not_be_is_a_problem() -> None:
    assert problems([{"part": "exact", "wrong_blocks": 0, "missing_bytes": 0}]) == []
    assert problems([{"part": "exact", "wrong_blocks": 2}]) == ["2 wrong blocks"]
    late: dict[str, Any] = {"part": "hazards", "case": "late write", "fence": False, "must_be_spoilt": True}
    assert problems([late | {"spoilt_blocks": 1}]) == []
    assert len(problems([late | {"spoilt_blocks": 0}])) == 1
    assert len(problems([late | {"spoilt_blocks": 1, "fence": True, "must_be_spoilt": False}])) == 1
    dead = {"part": "death", "context_lives": False, "memory_is_free": False}
    assert len(problems([dead, {"part": "x", "error": "it broke"}])) == 3
    assert problems([{"part": "ipc", "wrong_blocks": 0, "gpu_is_told": True}]) == []
    assert len(problems([{"part": "ipc", "gpu_is_told": told} for told in (True, False)])) == 1
