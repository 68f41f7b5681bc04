"""The live page in a real Chromium: every view as people see it, and what they can do there.

Needs Debian's `chromium`; without it all are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from time import time
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")
pytest.importorskip("playwright")

from frame.browser import CHROMIUM, chromium
from frame.page_server import PageServer, page_server
from frame.pretend import PretendCluster
from page_browser import DESK, MODES, PHONE, findings, focused, opened, tab_to
from playwright.sync_api import Browser, expect

from llumnix.control.orders import MoveCause
from llumnix.engine.vllm.front_end.page import feed
from llumnix.engine.vllm.front_end.page import page as page_module
from llumnix.types import InstanceState
from llumnix.wire.to_scheduler import AddInstances, DrainInstance

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (Debian: apt install chromium)"),
]
VIEWS = {
    "cluster": "Lowest freeness",
    "instance/i1": "What it holds",
    "requests": "Part of an id",
    "moves": "Who gives to whom",
    "scaling": "What it sees",
}
"""And something that is there once the view is."""


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with page_server(PretendCluster(6), past_s=400) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.mark.parametrize("mode", MODES)
def test_every_view_is_for_everybody(browser: Browser, server: PageServer, mode: dict[str, Any]) -> None:
    with opened(browser, f"{server.url}/llumnix/", **mode) as page:
        for view, sign in VIEWS.items():
            page.goto(f"{server.url}/llumnix/#{view}")
            page.get_by_text(sign).or_(page.get_by_label(sign)).first.wait_for()
            assert findings(page) == [], view
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{view} is too wide"


def test_cards_on_a_phone_are_as_on_a_desk_but_for_their_edges(browser: Browser, server: PageServer) -> None:
    looks = []
    for how in (DESK, PHONE):
        with opened(browser, f"{server.url}/llumnix/#scaling", **how) as page:
            inside = page.locator(".card > .inside.prose")
            names = "['textAlign', 'borderTopWidth', 'paddingTop', 'paddingLeft']"
            looks.append(inside.evaluate(f"it => {names}.map((name) => getComputedStyle(it)[name])"))
    assert looks == [["start", "0px", "4px", "20px"], ["start", "0px", "4px", "16px"]]


def test_what_happens_is_seen_without_asking_again(browser: Browser, server: PageServer) -> None:
    with opened(browser, f"{server.url}/llumnix/") as page:
        page.locator("tbody tr").first.wait_for()
        page.locator("path.flight").first.wait_for(state="attached")
        before = page.locator(".news li").first.inner_text()
        expect(page.locator(".news li").first).not_to_have_text(before)


@pytest.mark.parametrize("set_by_s", [-3600.0, 3600.0])
def test_charts_go_on_when_the_server_s_clock_is_set(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, set_by_s: float
) -> None:
    with (
        page_server(PretendCluster(3), past_s=60) as server,
        opened(browser, f"{server.url}/llumnix/#instance/i1") as page,
    ):
        page.locator(".charts").first.wait_for()
        monkeypatch.setattr(page_module, "time", lambda: time() + set_by_s)
        times = "import('/llumnix/page/store.js').then(({ known }) => known.history.at)"
        reached = time() + set_by_s
        page.wait_for_function(f"async () => Math.abs((await {times}).at(-1) - {reached}) < 20")
        page.wait_for_timeout(1500)
        seconds = page.evaluate(times)
        assert all(0 < later - earlier < 20 for earlier, later in pairwise(seconds)), (
            "the past is told by the new clock"
        )
        assert len(seconds) > 60


def test_drain_by_keyboard_alone(browser: Browser) -> None:
    with page_server(PretendCluster(4)) as server, opened(browser, f"{server.url}/llumnix/") as page:
        page.get_by_role("button", name="Drain… i2").wait_for()
        tab_to(page, "Drain… i2")
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        assert "3 instances go on to take new ones" in dialog.inner_text()
        assert findings(page) == []
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")  # its role is gone a moment before the page has heard of it
        assert focused(page) == "Drain… i2", "back where one was"
        assert server.board.asked == []
        page.keyboard.press("Enter")
        tab_to(page, "Drain i2")
        page.keyboard.press("Enter")
        page.get_by_role("row", name=re.compile("i2 (draining|stopped)")).wait_for()
        (order,) = server.board.asked
        assert isinstance(order, DrainInstance)
        assert (order.instance, order.keep, order.spare_last) == ("i2", False, True)


def test_last_instance_is_drained_only_by_its_name(browser: Browser) -> None:
    with page_server(PretendCluster(1)) as server, opened(browser, f"{server.url}/llumnix/") as page:
        page.get_by_role("button", name="Drain… i0").click()
        sure = page.get_by_role("button", name="Drain i0", exact=True)
        assert sure.is_disabled()
        page.get_by_label("Type i0 to go on").fill("i0")
        sure.click()
        page.get_by_role("dialog").wait_for(state="detached")
        (order,) = server.board.asked
        assert isinstance(order, DrainInstance)
        assert not order.spare_last


def test_instances_are_added_and_a_refusal_is_told_in_the_dialog(browser: Browser) -> None:
    with (
        page_server(PretendCluster(2)) as server,
        opened(browser, f"{server.url}/llumnix/", complaints=True) as page,
    ):
        page.get_by_role("button", name="Add… instances").click()
        page.get_by_label("How many").fill("2")
        server.board.scheduler_state = "lost"
        page.get_by_role("button", name="Start 2").click()
        page.get_by_role("alert").get_by_text("The scheduler does not answer; it is being restarted.").wait_for()
        server.board.scheduler_state = "running"
        page.get_by_role("button", name="Start 2").click()
        page.get_by_role("dialog").wait_for(state="detached")
        page.get_by_role("row", name="i3 starting").wait_for()
        assert isinstance(server.board.asked[-1], AddInstances)


def test_request_is_found_and_moved(browser: Browser) -> None:
    with (
        page_server(PretendCluster(3), past_s=30) as server,
        opened(browser, f"{server.url}/llumnix/#requests") as page,
    ):
        move = page.get_by_role("button", name=re.compile("^Move… cmpl-")).first
        name = str(move.text_content()).removeprefix("Move… ")
        page.get_by_label("Part of an id").fill(name)
        expect(page.locator("tbody tr")).to_have_count(1)
        move.click()
        page.get_by_role("button", name=re.compile("^Move to i")).click()
        page.get_by_role("dialog").wait_for(state="detached")
        assert MoveCause.BY_HAND in [record.cause for record in server.cluster.records]


def test_request_can_be_moved_though_no_instance_has_room(browser: Browser) -> None:
    cluster = PretendCluster(3)
    with page_server(cluster, past_s=30, steps=False) as server:
        for wants, known in zip((900, 500, 700), cluster.members.known.values(), strict=True):
            assert known.snapshot is not None
            full = {"free_blocks": 0, "running": 1, "waiting": 1, "head_of_line_blocks": wants, "queued_blocks": wants}
            known.snapshot = msgspec.structs.replace(known.snapshot, **full)
        with opened(browser, f"{server.url}/llumnix/#requests") as page:
            page.get_by_role("row", name="i0").get_by_role("button", name=re.compile("^Move… cmpl-")).first.click()
            expect(page.get_by_role("button", name="Move to i1")).to_be_enabled()


def test_viewer_of_requests_beyond_the_last_is_told_so(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        page_server(PretendCluster(2)) as server,
        opened(browser, f"{server.url}/llumnix/", complaints=True) as page,
    ):
        page.get_by_role("row", name="i1 running").wait_for()
        with monkeypatch.context() as crowded:
            crowded.setattr(feed, "MOST_VIEWERS", 0)
            page.goto(f"{server.url}/llumnix/#requests")
            page.get_by_text(re.compile(r"^\d+ viewers watch already")).wait_for()
        page.locator("tbody tr").first.wait_for()


def test_page_that_may_only_be_looked_at_offers_nothing_to_do(browser: Browser) -> None:
    with page_server(PretendCluster(2), acts=False) as server, opened(browser, f"{server.url}/llumnix/") as page:
        page.get_by_role("row", name="i1 running").wait_for()
        assert page.get_by_role("button", name=re.compile("Drain|Add")).count() == 0


def test_key_is_asked_for_kept_in_the_tab_and_sent(browser: Browser) -> None:
    with (
        page_server(PretendCluster(2), keys=["sesame"]) as server,
        opened(browser, f"{server.url}/llumnix/", complaints=True) as page,
    ):
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Watch").click()
        page.get_by_text("This key is not the server's.").wait_for()
        assert findings(page) == []
        page.get_by_label("API key").fill("sesame")
        page.get_by_role("button", name="Watch").click()
        page.get_by_role("row", name="i1 running").wait_for()
        page.reload()
        page.get_by_role("row", name="i1 running").wait_for()


def test_key_that_no_header_can_carry_is_not_kept(browser: Browser) -> None:
    with (
        page_server(PretendCluster(2), keys=["sesame"]) as server,
        opened(browser, f"{server.url}/llumnix/", complaints=True) as page,
    ):
        page.get_by_label("API key").fill("sésame")
        page.get_by_text("It has characters that no HTTP header can carry.").wait_for()
        expect(page.get_by_role("button", name="Watch")).to_be_disabled()
        assert findings(page) == []
        page.get_by_label("API key").fill("sesame")
        page.get_by_role("button", name="Watch").click()
        page.get_by_role("row", name="i1 running").wait_for()


def test_page_comes_back_after_the_server(browser: Browser) -> None:
    with page_server(PretendCluster(2)) as server:
        port = int(server.url.rpartition(":")[2])
        with opened(browser, f"{server.url}/llumnix/", complaints=True) as page:
            page.get_by_role("row", name="i1 running").wait_for()
            server.server.should_exit = True
            page.get_by_text("The server cannot be reached.").wait_for()
            assert findings(page) == []
            with page_server(PretendCluster(5), port=port):
                page.get_by_role("row", name="i4 running").wait_for()
                assert page.get_by_text("The server cannot be reached.").count() == 0


def test_many_instances_are_cells_the_worst_first(browser: Browser) -> None:
    cluster = PretendCluster(72)
    for _ in range(60):
        cluster.step(arrivals_per_instance=1.0)
    with page_server(cluster) as server, opened(browser, f"{server.url}/llumnix/") as page:
        page.locator(".cell").first.wait_for()
        assert page.locator(".cell").count() == 72
        assert findings(page) == []
        order = ["over", "tight", "steady", "roomy", "idle"]
        ranks = [order.index(word) for word in page.locator(".cell > span:not(.unseen)").all_inner_texts()]
        assert len(set(ranks)) > 1
        assert sum(a <= b for a, b in pairwise(ranks)) > 60, "but for those that changed meanwhile"
        page.locator(".cell").first.click()
        page.get_by_text("What it holds").wait_for()


def test_why_nothing_moves_and_why_no_instance_is_added(browser: Browser) -> None:
    with (
        page_server(PretendCluster(2), steps=False) as server,
        opened(browser, f"{server.url}/llumnix/") as page,
    ):
        card = page.get_by_role("region", name="Why not?")
        card.get_by_text("no instance gives requests away: the lowest freeness, 512 of i0, is not below 3").wait_for()
        waits = "freeness 1024, 2 instances: above 60 (--scale-in-freeness), for 0.0 of 10 s (--scale-window-s)"
        starts = f"auto-scaling only says what it would do (--scaling advise); {waits}"
        expect(card).to_contain_text(starts)
        for one in server.cluster.all.values():
            one.state = InstanceState.DRAINING
            server.cluster.members.known[one.info.id].snapshot = one.snapshot()
        expect(card).to_contain_text("no instance takes requests: there is nowhere to move to")
        server.board.scheduler_state = "lost"
        expect(card).to_contain_text("the scheduler, which starts instances, does not answer")
        server.board.scheduler_state = "running"
        page.goto(f"{server.url}/llumnix/#instance/i1")
        page.get_by_text("i1 drains: what it has moves as soon as there is room for it").wait_for()
        page.goto(f"{server.url}/llumnix/#scaling")
        page.get_by_text("Why no new instance? 0 of at least 1 instances").wait_for()


@pytest.mark.parametrize("address", ["nowhere", "toString"])
def test_address_of_no_view_shows_the_cluster(browser: Browser, address: str) -> None:
    with (
        page_server(PretendCluster(2), steps=False) as server,
        opened(browser, f"{server.url}/llumnix/#{address}") as page,
    ):
        page.get_by_role("region", name="Why not?").wait_for()


def test_server_without_requests_says_how_to_make_one(browser: Browser) -> None:
    with (
        page_server(PretendCluster(2), steps=False) as server,
        opened(browser, f"{server.url}/llumnix/#requests") as page,
    ):
        page.get_by_text(f"curl {server.url}/v1/completions").wait_for()
        page.goto(f"{server.url}/llumnix/#moves")
        page.get_by_text("Nothing has moved yet.").wait_for()


ANIMATION_OF_A_FLIGHT = """() => {
    const flight = document.querySelector("path.flight");
    return flight && getComputedStyle(flight).animationName;
}"""


def test_whoever_wants_no_motion_gets_none(browser: Browser, server: PageServer) -> None:
    with opened(browser, f"{server.url}/llumnix/", reduced_motion="reduce") as page:
        animation = page.wait_for_function(ANIMATION_OF_A_FLIGHT)  # at once: two seconds later it is gone
        assert animation.json_value() == "none"
