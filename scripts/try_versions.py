"""Tests Llumnix with each version of vLLM that it supports (`make test-versions`).

    python scripts/try_versions.py [0.31 0.32 0.33]

A version with a CPU build gets an environment of its own, `build/versions/0.31`, from `requirements/vllm-0.31.lock`
(that of `make env` is the one of the version that all tests run on), and in it the adapter, moved streams that must say
the same, and a server under which instances die. Of one without, the source of its wheel is compared with what is
relied on. Exit code 1 if one of them does not fit, 2 if it cannot be tried.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from llumnix.vllm_words import NEVER_RUN, SUPPORTED, VERSION

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "versions"
_LIMIT_S = 1500

_ADAPTER = ("tests/engine", "tests/late", "--ignore=tests/engine/test_vllm_flags.py")  # flags: a table of one version
_SERVED = tuple(f"tests/vllm/test_vllm_{name}.py" for name in ("equality", "negative_control", "moves", "loss"))


def main(words: list[str]) -> int:
    unknown = sorted(set(words) - set(SUPPORTED))
    if unknown:
        print(f"{unknown[0]} is not a version that is supported: {', '.join(SUPPORTED)}.", file=sys.stderr)
        return 2
    codes = {version: _try(version) for version in words or SUPPORTED}
    for version, code in codes.items():
        print(f"vLLM {version}: {_words(version, code)}")
    return max(codes.values())


def _try(version: str) -> int:
    print(f"--- vLLM {version}", flush=True)
    if version in NEVER_RUN:
        return _compare(version)
    python = Path(sys.executable)
    if not VERSION.startswith(f"{version}."):
        if subprocess.run([sys.executable, ROOT / "requirements" / "make_env.py", version], check=False).returncode:
            return 2
        python = BUILD / version / "bin" / "python"
    codes = [_pytest(python, tests) for tests in (_ADAPTER, _SERVED)]
    return 1 if any(codes) else 0


def _pytest(python: Path, tests: tuple[str, ...]) -> int:
    command = ["timeout", "-k", "10", str(_LIMIT_S), str(python), "-m", "pytest", *tests]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _compare(version: str) -> int:
    """By its source alone."""
    folder = BUILD / version
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("vllm-*.whl")):
        lock = ROOT / "requirements" / f"vllm-{version}.lock"
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        download += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(lock)]
        if subprocess.run(download, check=False).returncode:
            return 2
    (wheel,) = folder.glob("vllm-*.whl")
    return subprocess.run([sys.executable, ROOT / "scripts" / "vllm_fits.py", wheel], check=False).returncode


def _words(version: str, code: int) -> str:
    how = "by its source" if version in NEVER_RUN else "by its tests"
    return {0: f"fits, {how}", 1: f"does not fit, {how}"}.get(code, "could not be tried")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
