"""The pictures in docs/understand/protocol.md are those of the tables."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "draw_states.py"


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_document_is_up_to_date(script: dict[str, Any]) -> None:
    text = script["DOCUMENT"].read_text()
    assert script["redrawn"](text) == text, "run scripts/draw_states.py"


def test_picture_of_another_table_is_noticed(script: dict[str, Any]) -> None:
    text = script["DOCUMENT"].read_text().replace("committing --> moved", "committing --> nowhere")
    assert script["redrawn"](text) != text


def test_document_without_a_place_for_a_picture(script: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no place for the source diagram"):
        script["redrawn"]("# nothing here")
