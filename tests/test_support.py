"""What docs/use/support.md promises, and the tests that show it: each promise has one, and it exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parent


def _rows() -> ModuleType:
    path = TESTS.parent / "scripts" / "support_reference.py"
    spec = importlib.util.spec_from_file_location("support_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SUPPORT = _rows()
PROMISES: list[tuple[str, tuple[str, ...]]] = [
    *((f"{row.what}: {row.moves}", row.moved) for row in (*SUPPORT.REQUESTS, *SUPPORT.ENGINES)),
    *((f"{row.what}, after a death: {row.continues}", row.continued) for row in SUPPORT.REQUESTS),
]
PROOFS = sorted({proof for _, proofs in PROMISES for proof in proofs})


@pytest.mark.parametrize(("promise", "proofs"), PROMISES, ids=[promise for promise, _ in PROMISES])
def test_promise_has_a_proof(promise: str, proofs: tuple[str, ...]) -> None:
    assert proofs, promise


def test_nothing_is_promised_twice() -> None:
    named = [row.what for row in (*SUPPORT.REQUESTS, *SUPPORT.ENGINES)]
    assert sorted(set(named)) == sorted(named)


@pytest.mark.parametrize("proof", PROOFS)
def test_proof_exists(proof: str) -> None:
    name, _, test = proof.partition("::")
    (path,) = TESTS.rglob(name)
    assert re.search(rf"^(async )?def {test}\(", path.read_text(), re.MULTILINE)
