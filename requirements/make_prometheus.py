"""Makes `.venv/prometheus`: Debian's `prometheus` and `promtool`, unpacked, for the tests of alerts and of the board.

Nothing is installed in the system and no service starts. Where there is no apt-get, or it finds no package, one line
says so, and those tests are skipped unless both are on the path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from make_env import VENV, reason, say

HOME = VENV / "prometheus"
TOOLS = HOME / "usr" / "bin"
_TIMEOUT_S = 120


def main() -> None:
    if (TOOLS / "promtool").exists() or all(map(shutil.which, ("prometheus", "promtool"))):
        return
    why_not = _make()
    if why_not:
        say(f"no Prometheus for tests, which are skipped ({why_not})")


def _make() -> str:
    """Why it cannot be made; empty if it is there."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # apt downloads as a user of its own
        why_not = _run(folder, "apt-get", "download", "prometheus")
        if why_not and os.geteuid() == 0:  # on a bare machine it does not know yet which packages there are
            why_not = _run(folder, "apt-get", "update") or _run(folder, "apt-get", "download", "prometheus")
        if why_not:
            return why_not
        (package,) = Path(folder).glob("prometheus_*.deb")
        shutil.rmtree(HOME, ignore_errors=True)
        unpacked = Path(folder) / "unpacked"
        why_not = _run(folder, "dpkg-deb", "--extract", str(package), str(unpacked))
        if not why_not:
            shutil.move(unpacked, HOME)  # whole or not at all
        return why_not


def _run(folder: str, *command: str) -> str:
    """Why it failed, in its own last words; empty if it did not."""
    try:
        run = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return "" if run.returncode == 0 else reason(run)


if __name__ == "__main__":
    main()
