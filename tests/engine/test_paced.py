"""Steps of a paced model last as long as its configuration says, whatever the model."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from frame import models
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


def test_step_waits_until_its_time_is_over_and_twice_as_long_on_a_device_that_is_slower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(CPUModelRunner, "_model_forward", lambda runner, input_ids, positions: input_ids)
    monkeypatch.setattr(CPUModelRunner, "is_paced", False, raising=False)
    monkeypatch.syspath_prepend(str(Path(models.__file__).parents[1] / "_paced"))
    paced_model: Any = __import__("paced_model")
    monkeypatch.delitem(sys.modules, "paced_model")
    paced_model.register()
    paced_model.register()
    config = SimpleNamespace(paced_step_ms=20.0, paced_token_ms=2.0)
    runner = SimpleNamespace(model_config=SimpleNamespace(hf_config=config, model=str(tmp_path)))
    began_s = time.monotonic()
    # Positions are three rows for models that look at images.
    forward: Any = CPUModelRunner._model_forward
    assert forward(runner, input_ids="tokens", positions=torch.zeros(3, 5)) == "tokens"
    assert time.monotonic() - began_s >= 0.03
    (tmp_path / f"slow-{os.getpid()}").touch()
    began_s = time.monotonic()
    forward(runner, input_ids="tokens", positions=torch.zeros(5))
    assert time.monotonic() - began_s >= 0.06
