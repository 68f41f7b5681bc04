"""What some tests alone need is in folders of their own, `.venv/NAME` from NAME.lock: in the environment, PyTorch, vLLM
and we would look at it in everything that runs on a CPU. Those tests put it on their path.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from make_env import ROOT, VENV, install, say


def make_aside(name: str, needless: tuple[str, ...] = ()) -> None:
    """`needless`: below it, what is thrown away. Exit code 2 and one sentence when it cannot be made."""
    locked, home = ROOT / "requirements" / f"{name}.lock", VENV / name
    wanted, stamp = locked.read_text(), home / "made-from"
    lock = os.open(ROOT / "requirements", os.O_RDONLY)  # two makes at once take turns
    fcntl.flock(lock, fcntl.LOCK_EX)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(home, ignore_errors=True)
    say(f"installing requirements/{name}.lock")
    install(["--no-deps", "--target", str(home), "-r", str(locked)], f"requirements/{name}.lock cannot be installed")
    for part in needless:
        _remove(home / part)
    stamp.write_text(wanted)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
