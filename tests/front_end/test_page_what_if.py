"""What would have been otherwise, on the live page in a real Chromium: what is asked, and what is shown first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")
pytest.importorskip("playwright")

from frame.browser import CHROMIUM, chromium
from frame.page_server import PageServer, page_server
from frame.pretend import PretendCluster
from page_browser import MODES, findings, opened
from playwright.sync_api import Browser, Page, Route, expect

from lived_run import SHORT, lived, recorded
from llumnix.api.what_if import WhatIfRun
from recorded_run import write_run

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (Debian: apt install chromium)"),
]
LONG_MS = 100_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    """Of four instances, whose run is recorded."""
    write_run(tmp_path / "run", recorded(lived(SHORT)), unit_tokens=0)
    with page_server(PretendCluster(4), recorded=tmp_path / "run") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def view(server: PageServer) -> str:
    return f"{server.url}/llumnix/#whatif"


def answers(server: PageServer, known: list[dict[str, Any]], tried: list[dict[str, Any]]) -> None:
    """As if that had been found."""
    found = {"about": ["It was a Tuesday."], "instance_hours": 4.0, "repeats": 8, "known": known, "tried": tried}
    run = WhatIfRun(tries=[], folder="runs", command="llumnix whatif runs", began_at_s=1.0, found=found)
    Path(server.board.spec.book.run_dir, "what-if").write_bytes(msgspec.json.encode(run))


def of(name: str, **facts: Any) -> dict[str, Any]:
    return {"metric": {"name": name, "field": "", "percentile": 50, "unit": "ms"}, "why": "", **facts}


def test_it_is_asked_by_keyboard_and_credibility_comes_before_what_is_predicted(
    browser: Browser, server: PageServer
) -> None:
    with opened(browser, view(server)) as page:
        page.get_by_label("instances=3").focus()
        page.keyboard.press("Space")
        page.get_by_label("Others, as --try takes them").fill("relief-steps=32,instances=5")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="instances=3")).to_be_visible(timeout=LONG_MS)
        cards = (
            page.locator(".stack")
            .first.get_by_role("region")
            .evaluate_all("all => all.map((card) => card.getAttribute('aria-label'))")
        )
        titles = [card for card in cards if not card.startswith("Predicted with")]
        believed = "How far it can be believed"
        assert titles == ["What if", believed, "Measured and simulated", "instances=3", "relief-steps=32,instances=5"]
        row = page.get_by_role("region", name=believed).get_by_role("row", name="TTFT P50")
        expect(row).to_contain_text("good")
        expect(page.get_by_text("--try=instances=3 --try=relief-steps=32,instances=5")).to_be_visible()
        expect(page.get_by_text("80 requests in")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="instances=3")).to_be_visible()


@pytest.mark.parametrize("mode", MODES)
def test_what_was_found_is_for_everybody(browser: Browser, server: PageServer, mode: dict[str, Any]) -> None:
    known = [
        of("TTFT P50", measured=210.0, simulated=203.0, error=-0.033, grade="good"),
        of("TTFT P99", measured=3600.0, simulated=4104.0, error=0.14, grade="fair"),
        of("TPOT P99", measured=153.0, simulated=340.0, error=1.22, grade="not credible", why="off by 2.2 times"),
    ]
    rows = [of("TTFT P50", value=180.0, low=171.0, high=190.0), of("TTFT P99", value=1100.0, low=840.0, high=1330.0)]
    withheld = of("TPOT P99", value=None, low=None, high=None)
    answers(server, known, [{"name": "instances=6", "instance_hours": 6.0, "predictions": [*rows, withheld]}])
    with opened(browser, view(server), **mode) as page:
        expect(page.get_by_text("Withheld, as not credible: TPOT P99.")).to_be_visible()
        assert page.locator(".ranges tbody tr").count() == 2
        expect(page.locator(".ranges")).not_to_contain_text("TPOT P99")
        assert findings(page) == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        bars = bars_of(page)
    assert bars[0] == pytest.approx([171 / 210, 190 / 210, 1.0], abs=0.02), "from, to, and what was measured"
    assert bars[1] == pytest.approx([840 / 3600, 1330 / 3600, 1.0], abs=0.02)


def bars_of(page: Page) -> list[list[float]]:
    found: list[list[float]] = page.locator(".range").evaluate_all(
        """all => all.map((track) => {
            const { left, width } = track.getBoundingClientRect();
            const [bar, , was] = [...track.children].map((each) => each.getBoundingClientRect());
            return [bar.left, bar.right, was.left + was.width / 2].map((at) => (at - left) / width);
        })"""
    )
    return found


def test_nothing_is_predicted_of_what_is_not_credible(browser: Browser, server: PageServer) -> None:
    known = [of("TTFT P50", measured=10.0, simulated=90.0, error=8.0, grade="not credible", why="off by 9.0 times")]
    predictions = [of("TTFT P50", value=None, low=None, high=None)]
    answers(server, known, [{"name": "instances=6", "instance_hours": 6.0, "predictions": predictions}])
    with opened(browser, view(server)) as page:
        page.get_by_text("Nothing of this simulation is credible, so nothing is predicted.").wait_for()
        expect(page.get_by_role("row", name="TTFT P50")).to_contain_text("off by 9.0 times")
        assert page.locator(".ranges").count() == 0


def test_what_makes_no_sense_is_said_beside_it_and_one_under_way_is_cancelled(
    browser: Browser, server: PageServer, tmp_path: Path
) -> None:
    write_run(tmp_path / "long", recorded(lived()), unit_tokens=0)  # it takes a while
    server.board.log.recorder.folder = tmp_path / "long"
    with opened(browser, view(server), complaints=True) as page:
        tries = page.get_by_label("Others, as --try takes them")
        tries.fill("instances=lots")
        page.get_by_role("button", name="Simulate").click()
        said = "--try instances=lots: instances are a number from 1 to"
        expect(page.get_by_role("alert")).to_contain_text(said, timeout=LONG_MS)
        assert findings(page) == []
        tries.fill("instances=5..12")
        page.get_by_role("button", name="Simulate").click()
        expect(page.get_by_text("of 72 simulations")).to_be_visible(timeout=LONG_MS)
        assert findings(page) == []
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("It was cancelled.").wait_for()
        expect(page.get_by_role("button", name="Simulate")).to_be_enabled()


def test_page_that_may_only_be_looked_at_shows_what_others_asked(browser: Browser, server: PageServer) -> None:
    with page_server(PretendCluster(2), acts=False, recorded=server.board.log.recorder.folder) as looked_at:
        answers(looked_at, [of("TTFT P50", measured=1.0, simulated=1.0, error=0.0, grade="good")], [])
        with opened(browser, view(looked_at)) as page:
            page.get_by_text("It was a Tuesday.").wait_for()
            assert page.get_by_role("button", name="Simulate").count() == 0


def test_server_that_records_nothing_says_how_it_would(browser: Browser) -> None:
    with page_server(PretendCluster(2), steps=False) as server, opened(browser, view(server)) as page:
        page.get_by_text("llumnix serve tiny --record DIR").wait_for()
        assert findings(page) == []


def test_what_was_typed_stays_until_it_is_answered(browser: Browser, server: PageServer) -> None:
    """Although one runs already by then, which may yet be refused."""
    asked: list[Route] = []

    def answer(route: Route) -> None:
        if route.request.method == "POST":
            asked.append(route)
        else:
            route.fulfill(json={"running": bool(asked), "run": None})

    with opened(browser, view(server), complaints=True) as page:
        page.route("**/v1/whatif", answer)
        tries = page.get_by_label("Others, as --try takes them")
        tries.fill("knob=3")
        page.get_by_role("button", name="Simulate").click()
        for _ in range(2):
            with page.expect_response(re.compile("/v1/whatif$")):
                pass
        asked.pop().fulfill(status=400, json={"reason": "No such knob."})  # and so none runs
        expect(page.get_by_role("alert")).to_have_text("No such knob.")
        expect(tries).to_have_value("knob=3")
