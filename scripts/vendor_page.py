"""Fetches what the live page and its tests use of others, by `npm pack`, and writes down the hashes.

Users never need npm; this is for another version: change a number below, run it, look at what it changed.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "src/llumnix/engine/vllm/front_end/page/files/vendor"
TESTS = ROOT / "tests/front_end/axe"
HASHES = "sha256.txt"
"""In each folder, as `sha256sum --check` reads it."""

_SOURCE_MAP = re.compile(rb"\s*//# sourceMappingURL=\S+\s*$")


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    files: dict[str, str]
    """Where they are in the package, and what they are called here."""
    folder: Path = PAGE


PACKAGES = (
    Package("preact", "11.2.0", {"dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "hooks.js"}),
    Package("htm", "3.1.1", {"dist/htm.mjs": "htm.js"}),
    Package("uplot", "1.6.32", {"dist/uPlot.iife.min.js": "uplot.js", "dist/uPlot.min.css": "uplot.css"}),
    Package("axe-core", "4.14.1", {"axe.min.js": "axe.js", "LICENSE-3RD-PARTY.txt": "LICENSE-axe-core-others"}, TESTS),
)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        for package in PACKAGES:
            fetch(package, Path(scratch))
    for folder in {package.folder for package in PACKAGES}:
        (folder / HASHES).write_text(hashes(folder))
    return 0


def fetch(package: Package, scratch: Path) -> None:
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    packed = subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True).stdout.split()[-1]
    package.folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(scratch / packed) as archive:
        for inside, name in (package.files | {"LICENSE": f"LICENSE-{package.name}"}).items():
            member = archive.extractfile(f"package/{inside}")
            assert member is not None, f"{package.name} has no file {inside}"
            (package.folder / name).write_bytes(as_served(member.read()))


def as_served(content: bytes) -> bytes:
    """Browsers find a module by its address; the maps of the sources are not shipped."""
    return _SOURCE_MAP.sub(b"\n", content.replace(b'from"preact"', b'from"./preact.js"'))


def hashes(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.name != HASHES)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


if __name__ == "__main__":
    sys.exit(main())
