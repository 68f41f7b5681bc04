"""What the tests of alerts and of the Grafana board share: Prometheus, where it is, and what the panels ask it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_UNPACKED = Path(sys.prefix) / "prometheus" / "usr" / "bin"


def tool(name: str) -> str:
    """Skips the test where there is none."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_UNPACKED}")
    if found is None:
        pytest.skip(f"there is no {name} here: `make prometheus` unpacks Debian's")
    return found


def promtool(*words: str) -> None:
    """It has nothing to complain of."""
    run = subprocess.run([tool("promtool"), *words], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


_DEPLOY = Path(__file__).parent.parent / "deploy"
RULES = _DEPLOY / "prometheus" / "llumnix.rules.yaml"
BOARD: dict[str, Any] = json.loads((_DEPLOY / "grafana" / "llumnix.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def queries(panel: dict[str, Any], window: str) -> list[str]:
    """With all servers chosen, as Grafana would send them."""
    filled = {"$job": ".+", "$instance": ".+", "$__rate_interval": window, "$__range": window}
    found = []
    for target in panel["targets"]:
        expression: str = target["expr"]
        for name, value in filled.items():
            expression = expression.replace(name, value)
        found.append(expression)
    return found
