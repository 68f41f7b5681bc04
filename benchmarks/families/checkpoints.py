"""Checkpoints of the recipes in the cache, made once each, all that are missing in one child process.

python benchmarks/families/checkpoints.py FOLDER NAME…      what that child runs
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from families.audio import AUDIO
from families.drafts import DRAFTS
from families.hybrids import HYBRIDS
from families.images import IMAGES
from families.text import TEXT
from families.weights import make
from llumnix.tiny_model import cache_dir, publish

_SOURCES = ("recipes", "text", "hybrids", "images", "audio", "drafts", "weights", "../frame/lora")
"""What decides about a checkpoint."""

RECIPES = TEXT | HYBRIDS | IMAGES | AUDIO | DRAFTS


def ensure(names: Sequence[str], cache: Path | None = None) -> dict[str, Path]:
    """The folders of these recipes, by name. Raises RuntimeError with the child's last words if one cannot be made."""
    cache = cache or cache_dir()
    targets = {name: cache / f"family-{name}-{_hash_of_sources()}" for name in names}
    missing = [name for name, target in targets.items() if not target.is_dir()]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="family-unfinished-", dir=cache))
        try:
            _make_in_child(unfinished, missing)
            for name in missing:
                publish(unfinished / name, targets[name])
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return targets


def _make_in_child(folder: Path, names: Sequence[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, str(folder), *names]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise RuntimeError(f"{', '.join(names)} could not be made: {made.stderr[-2000:]}")


def _hash_of_sources() -> str:
    """Other recipes are other models."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    for recipe in sys.argv[2:]:
        make(RECIPES[recipe], Path(sys.argv[1]) / recipe)
