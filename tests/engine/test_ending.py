"""The last moments of an engine's process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("vllm")

ENGINE = """
import gc
from llumnix.engine.vllm.instance.ending import end_without_collecting

class Part:
    def __init__(self, name):
        self.name = name

    def __del__(self):
        print(self.name)

cycle = Part("of a cycle")
cycle.itself = cycle
alone = Part("alone")
end_without_collecting()
gc.unfreeze()  # as vLLM does
del cycle, alone
gc.collect()
print("the end")
"""


def test_nobody_looks_for_cycles_in_what_ends_and_what_is_let_go_of_is_freed_as_always() -> None:
    said = subprocess.run([sys.executable, "-c", ENGINE], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split("\n") == ["alone", "the end", ""]
