"""Makes `.venv` from the lock files, or repairs it; does nothing when it is as they say. Needs a bare Python 3.11+.

With a version of vLLM that has a lock file of its own (`make_env.py 0.31`) it makes `build/versions/0.31` instead.

The environment is finished only when its stamp says which lock files it was made from: one that is half made, broken
or of older locks is completed in place, or made again if its Python does not run. It keeps the version of Python that
it was made with until another one is named (`make env PYTHON=python3.12`): then it is made again, too.

Exit code 2 and one sentence when it cannot be made.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VERSION = "".join(sys.argv[1:2])
VENV = ROOT / "build" / "versions" / VERSION if VERSION else ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "made-from"
LOCKS = tuple(
    ROOT / "requirements" / f"{name}.lock" for name in (f"vllm-{VERSION}" if VERSION else "cpu", "ray", "dev")
)

_LOCK_LINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")

# The usual index offers PyTorch for CUDA, gigabytes of it; the CPU build is on PyTorch's own, which is asked if the
# sources that pip is configured with do not have it.
_TORCH_INDEX = os.environ.get("TORCH_INDEX") or "https://download.pytorch.org/whl/cpu"

_IS_COMPLETE = (
    "import importlib.util as u, sys; "
    "sys.exit(not all(map(u.find_spec, ['torch', 'vllm', 'ray', 'llumnix', 'pytest'])))"
)
_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
_WORKS = "import torch, vllm, pytest, llumnix.cli"


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 whoever calls this may have any Python
        fail(f"Python 3.11 or newer is needed, not {sys.version.split()[0]}: say make PYTHON=/path/to/python3.11.")
    torch = check_locks()
    lock = os.open(ROOT / "requirements", os.O_RDONLY)  # two makes at once take turns
    fcntl.flock(lock, fcntl.LOCK_EX)
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted and runs(_IS_COMPLETE):
        return
    STAMP.unlink(missing_ok=True)
    make(torch)
    STAMP.write_text(wanted)
    say("the environment is complete")


def check_locks() -> str:
    """The pinned version of torch. Ends the program when a lock file is not a list of `name==version`."""
    torch = None
    for lock in LOCKS:
        name = lock.relative_to(ROOT)
        try:
            lines = lock.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{name} cannot be read ({error}): restore it from the repository.")
        for number, line in enumerate(lines, start=1):
            if not _LOCK_LINE.fullmatch(line):
                fail(
                    f"{name} is broken in line {number}: {line!r} is not name==version; restore it from the repository."
                )
            if line.startswith("torch=="):
                torch = line.removeprefix("torch==").partition("+")[0]
    if torch is None:
        fail(f"{LOCKS[0].relative_to(ROOT)} does not name a version of torch: restore it from the repository.")
    return torch


def fingerprint() -> str:
    digest = hashlib.sha256()
    for path in (*LOCKS, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {version_wanted()}\n"


def version_wanted() -> str:
    """Of the environment's Python. make hands on as a variable what it was told, and not its own default."""
    callers = f"{sys.version_info.major}.{sys.version_info.minor}"
    return callers if os.environ.get("PYTHON") else version_there() or callers


def version_there() -> str:
    """Empty if the environment's Python does not run."""
    try:
        return subprocess.run([str(PYTHON), "-c", _VERSION], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def make(torch: str) -> None:
    if not runs("import pip") or version_there() != version_wanted():
        say(f"making {VENV.relative_to(ROOT)}")
        command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
        run(command, "a virtual environment cannot be made (on Debian and Ubuntu: apt install python3-venv)")
    say(f"installing PyTorch {torch} for the CPU")
    install_torch(torch)
    for lock in LOCKS:
        name = str(lock.relative_to(ROOT))
        say(f"installing {name}")
        install(["--no-deps", "-r", str(lock)], f"{name} cannot be installed")
    install(["--no-deps", "--no-build-isolation", "-e", str(ROOT)], "Llumnix cannot be installed")
    say("trying it")
    run([str(PYTHON), "-c", _WORKS], "the environment is complete but does not work")


def install_torch(version: str) -> None:
    for source in ([], ["--extra-index-url", _TORCH_INDEX]):
        result = pip([f"torch=={version}+cpu", *source])
        if result.returncode == 0:
            return
    fail(f"PyTorch {version} for the CPU cannot be installed ({reason(result)}); TORCH_INDEX=URL names another source.")


def install(arguments: list[str], failure: str) -> None:
    result = pip(arguments)
    if result.returncode != 0:
        fail(f"{failure}: {reason(result)}")


def pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run(command: list[str], failure: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        fail(f"{failure}: {reason(result)}")


def runs(program: str) -> bool:
    """Whether the environment's Python exists and runs this."""
    try:
        return subprocess.run([str(PYTHON), "-c", program], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def reason(result: subprocess.CompletedProcess[str]) -> str:
    """The last error that it named, else its last line."""
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no reason given"])[-1]


def say(text: str) -> None:
    print(f"env: {text}", flush=True)


def fail(sentence: str) -> NoReturn:
    print(f"env: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
