"""A page in a browser, for tests of what people see and do there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

AXE = Path(__file__).parent / "axe" / "axe.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
MODES = [
    pytest.param(DESK | {"color_scheme": "light"}, id="light desk"),
    pytest.param(PHONE | {"color_scheme": "dark"}, id="dark phone"),
    pytest.param(DESK | {"color_scheme": "dark"}, id="dark desk", marks=pytest.mark.nightly),
    pytest.param(PHONE | {"color_scheme": "light"}, id="light phone", marks=pytest.mark.nightly),
]
SOON_MS = 8000


@contextmanager
def opened(browser: Browser, url: str, *, complaints: bool = False, **how: Any) -> Iterator[Page]:
    """A page that asks nobody but our host, and says nothing on the console (but with `complaints`)."""
    context = browser.new_context(**(DESK | how))
    context.set_default_timeout(SOON_MS)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    host = re.match(r"http://[^/]+/", url)
    assert host is not None
    assert [each for each in asked if not each.startswith(host[0])] == []
    assert complaints or said == []


def findings(page: Page) -> list[str]:
    page.evaluate(AXE.read_text())
    found = page.evaluate("rules => axe.run({runOnly: rules})", RULES)["violations"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.textContent"))


def tab_to(page: Page, name: str) -> None:
    for _ in range(60):
        if focused(page).strip() == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{name} cannot be reached by the keyboard")
