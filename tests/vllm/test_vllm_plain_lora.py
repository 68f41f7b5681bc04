"""A fault of plain vLLM on CPUs that Llumnix takes care of (`without_adapter.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import plain_lora
import pytest


@pytest.mark.nightly
def test_plain_vllm_answers_a_request_without_an_adapter_with_the_last_one(tmp_path: Path) -> None:
    """Once this fails, vLLM has mended it."""
    command = [sys.executable, plain_lora.__file__, str(tmp_path)]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=paths)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "last place empty": 0,
        "alone, last place filled": 0,
        "last place filled": plain_lora.TOKENS,
        "from what the last adapter says": 0,
        "last adapter removed": plain_lora.TOKENS,
    }
