"""Imports vLLM once, before pytest makes errors of the warnings that it and PyTorch give at import."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from small_engine import SmallEngine

with warnings.catch_warnings(), contextlib.suppress(ImportError):  # without vLLM its tests are skipped
    warnings.simplefilter("ignore")
    import llumnix.engine.vllm.front_end.serve
    import llumnix.engine.vllm.instance.core  # noqa: F401


@pytest.fixture
def engine() -> Iterator[SmallEngine]:
    from small_engine import SmallEngine

    made = SmallEngine()
    yield made
    made.close()
