"""The documents say what the code says, and point to what exists."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for folder in ("", "benchmarks", "deploy") for path in (ROOT / folder).glob("*.md"))
PAGES += sorted((ROOT / "docs").rglob("*.md"))
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "configuration_reference",
        "grafana_board",
        "http_reference",
        "prometheus_rule",
        "routes_reference",
        "support_reference",
        "vllm_flags",
        "vllm_hooks",
    ],
)
def test_a_generated_page_is_what_its_source_says(name: str) -> None:
    script = _script(name)
    assert script.TARGET.read_text() == script.reference(), f"run scripts/{name}.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


def test_openapi_document_is_what_the_structs_and_the_routes_say() -> None:
    script = _script("http_reference")
    assert json.loads(script.OPENAPI.read_text()) == script.document(), "run scripts/http_reference.py"


def test_the_index_leads_to_every_page() -> None:
    docs = ROOT / "docs"
    listed = {(docs / link).resolve() for link in _LINK.findall((docs / "README.md").read_text())}
    pages = {page for folder in ("use", "understand", "change", "measure") for page in (docs / folder).glob("*.md")}
    assert sorted(str(page.relative_to(docs)) for page in pages - listed) == []


def test_what_the_glossary_points_at_exists() -> None:
    page = (ROOT / "docs/understand/glossary.md").read_text()
    paths = set(re.findall(r"`([a-z_0-9/]+(?:\.py|/))`", page))
    assert len(paths) > 10
    assert sorted(path for path in paths if not (ROOT / "src/llumnix" / path).exists()) == []


def test_no_word_is_explained_twice() -> None:
    page = (ROOT / "docs/understand/glossary.md").read_text()
    words = [word.strip() for row in re.findall(r"^\| ([^|]+) \| ", page, re.MULTILINE) for word in row.split(",")]
    assert len(words) > 40
    assert len(set(words) - {"word"}) == len([word for word in words if word != "word"])
