"""Rings from fast to slow: a mistake in the pure core shows before any process is started."""

from __future__ import annotations

import pytest

_RINGS = ("live", "vllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(
        key=lambda item: max((_RINGS.index(m.name) + 1 for m in item.iter_markers() if m.name in _RINGS), default=0)
    )
