"""The routers that people put before vLLM's engines, from the package index, in an environment of their own.

It is `build/routers`, made from routers.lock: what they need is none of what the project needs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from frame.verdict import ROOT

LOCK = Path(__file__).with_name("routers.lock")
HOME = ROOT / "build" / "routers"
STAMP = HOME / "made-from"

COMMANDS = {"vllm-router": ("vllm-router",), "smg": ("smg", "launch")}
POLICIES = {
    "vllm-router": ("round_robin", "random", "power_of_two", "cache_aware", "sticky_least_loaded", "consistent_hash"),
    "smg": ("round_robin", "random", "power_of_two", "cache_aware", "least_load", "prefix_hash", "consistent_hashing"),
}
"""Those that a request without a session can be placed by. Not `kv_aware` of vllm-router, which wants a socket of cache
events of each engine and a tokenizer, nor `manual` and `passthrough` of smg, with which the client chooses."""


def ensure() -> None:
    """Makes the environment if it is not there. Raises SystemExit with pip's words."""
    if STAMP.exists() and STAMP.read_text() == LOCK.read_text():
        return
    _run(sys.executable, "-m", "venv", "--clear", str(HOME))
    pip = (str(HOME / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    _run(*pip, "-r", str(LOCK))
    STAMP.write_text(LOCK.read_text())


def command(router: str, policy: str, workers: list[str]) -> list[str]:
    """Words that start it, but for `--host` and `--port`."""
    words = COMMANDS[router]
    return [str(HOME / "bin" / words[0]), *words[1:], "--policy", policy, "--worker-urls", *workers]


def _run(*words: str) -> None:
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    if said.returncode:
        raise SystemExit(f"{' '.join(words)}: {said.stderr.strip()}")
