from __future__ import annotations

import subprocess
import sys

IMPORT = """
import gc
from llumnix.cluster import forking

def looked_through():
    return sum(each["collections"] for each in gc.get_stats())

before = looked_through()
forking.collect_later()
imported = [[] for _ in range(200_000)]
print(looked_through() - before)
forking.settle_memory()
print(gc.isenabled(), gc.get_freeze_count() >= 200_000)
"""


def test_memory_is_looked_through_once_the_engine_is_imported_and_not_before() -> None:
    said = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split("\n") == ["0", "True True", ""]
