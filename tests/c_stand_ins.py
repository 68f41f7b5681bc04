"""Stand-ins for libraries that come with a device, written in C."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def built(source: Path, library: Path) -> str:
    """Path of `library`. Skips the test where there is no compiler."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)
