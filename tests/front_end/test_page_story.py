"""The story of a request on the live page, in a real Chromium: how it is reached, and what it says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from time import time
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("vllm")
pytest.importorskip("playwright")

from frame.browser import CHROMIUM, chromium
from frame.page_server import PageServer, page_server
from frame.pretend import PretendCluster
from page_browser import MODES, findings, opened, tab_to
from playwright.sync_api import Browser, Page, expect

from llumnix.journal.journal import Journal
from llumnix.journal.story import Story
from llumnix.journal.words import story_lines
from llumnix.policy.dispatch import DispatchReason, Judged
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import InstanceId
from move_outcomes import outcome

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (Debian: apt install chromium)"),
]
A, B, C = map(InstanceId, ("i0", "i1", "i2"))
REASON = DispatchReason("freeness", (Judged(A, 21.5), Judged(B, 3.0, has_room=False)), 4, unit="blocks")


def begun(cluster: PretendCluster, name: str) -> Story:
    """Its first token came 10 s ago, from i0."""
    cluster.stories.journal = Journal("f0")  # whose times may begin in the past again
    arrived_s = time() - 10.25
    story = cluster.stories.began(arrived_s, name, f"{name}-0-7f", 812)
    story.dispatched(arrived_s, REASON)
    story.scheduled(arrived_s + 0.05)
    story.token(arrived_s + 0.25, cached_tokens=64)
    return story


def ended(cluster: PretendCluster, name: str) -> Story:
    """It moved, was preempted, and lost with its instance."""
    story = begun(cluster, name)
    at_s = story.arrived_s
    story.moved(at_s + 4.0, outcome("i0", "i1"), downtime_s=0.5)
    story.preempted(at_s + 5.0)
    story.scheduled(at_s + 5.5)
    story.token(at_s + 6.0)
    story.parked(at_s + 7.0, "i1 was lost", last_token_s=at_s + 6.5)
    story.replayed(at_s + 8.0, DispatchReason("freeness", (Judged(C, 9.0),), 1), "i1 was lost", 390, at_s + 6.5)
    story.token(at_s + 8.5)
    story.ended(at_s + 10.0, "length", 391)
    cluster.stories.over(story)
    return story


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    """Time stands still in its cluster."""
    with page_server(PretendCluster(4), past_s=200, steps=False) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def at(server: PageServer, request: str) -> str:
    return f"{server.url}/llumnix/#story/{quote(request, safe='')}"


def events(page: Page) -> list[str]:
    return page.locator(".events > li p").all_inner_texts()


@pytest.mark.parametrize("mode", MODES)
def test_it_is_for_everybody(browser: Browser, server: PageServer, mode: dict[str, Any]) -> None:
    runs = next(request.id for one in server.cluster.all.values() for request in one.running)
    for request in (ended(server.cluster, f"cmpl-{mode}").request, runs):
        with opened(browser, at(server, request), **mode) as page:
            page.get_by_role("heading", name="Where its time went").wait_for()
            assert findings(page) == []
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_it_says_what_the_command_says_and_its_times_add_up(browser: Browser, server: PageServer) -> None:
    name = "cmpl/ended & told"
    ended(server.cluster, name)
    (told,) = server.cluster.stories.tell(name, time()).stories
    first, _, *lines = story_lines(told)
    with opened(browser, at(server, name)) as page:
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(page.get_by_text(f"It {first.removeprefix(name).strip()}.")).to_be_visible()
        assert events(page) == [line.partition(" s  ")[2] for line in lines]
        where = page.get_by_role("img", name=re.compile("^On i"))
        assert where.get_attribute("aria-label") == "On i0 for 4.0 s, then i1 for 3.0 s, then i2 for 2.0 s"
        assert page.locator(".candidates").first.locator("li").all_inner_texts() == [
            *("i0 21.5 blocks", "i1 3 blocks, no room", "2 more"),
        ]
        rows = page.get_by_role("table", name="Where its time went").get_by_role("row").all_inner_texts()
        parts = {row.split("\t")[0]: float(row.split("\t")[1].removesuffix(" s")) for row in rows}
        assert parts == {
            "in the queue": 0.05,
            "prefill": 0.2,
            "decoding": 6.25,
            "preempted": 1.0,
            "lost to moves": 0.5,
            "lost with an instance": 2.0,
            "together": 10.0,
        }
        assert page.get_by_text("Why it stays where it is").count() == 0, "it has ended"


def copied(page: Page) -> str:
    """The command on the page, as a click selects it and Ctrl-C takes it."""
    code = page.get_by_role("region", name="The same as a command").locator("code")
    code.click()
    return str(page.evaluate("getSelection().toString()"))


@pytest.mark.parametrize(
    "name",
    ["cmpl-$(reboot)", 'cmpl-a\'b "c" \\d  e', "cmpl-\x1b[31m\n\u202e'\\x", "--log=é", "~root", "*", "-7"],
)
def test_its_command_says_the_id_and_nothing_else_to_a_shell(browser: Browser, server: PageServer, name: str) -> None:
    ended(server.cluster, name)
    with opened(browser, at(server, name)) as page:
        command = copied(page)
    assert command.isprintable(), "as a terminal would take it"
    shell = f"llumnix() {{ printf '%s\\0' \"$@\"; }}; {command}"
    run = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, cwd="/")
    flags_end = ["--"] if name.startswith("-") else []
    assert run.stdout.split("\0") == ["explain", *flags_end, name, ""]


def test_what_was_left_out_of_a_long_one_is_a_gap_and_not_guessed(browser: Browser, server: PageServer) -> None:
    story = begun(server.cluster, "cmpl-long")
    for number in range(90):
        there = (("i0", "i1"), ("i1", "i2"), ("i2", "i0"))[number % 3]
        story.moved(story.arrived_s + 1.0 + 0.1 * number, outcome(*there), downtime_s=0.001)
    with opened(browser, at(server, "cmpl-long")) as page:
        page.get_by_text("… 28 more …").wait_for()
        said = str(page.get_by_role("img", name=re.compile("^On i")).get_attribute("aria-label"))
        assert len(said.split(", then ")) == 6 + 56, "where it was in between is not known"
        assert len(events(page)) == 65


def test_of_very_many_sequences_with_one_id_the_latest_are_shown(browser: Browser, server: PageServer) -> None:
    for number in range(70):
        server.cluster.stories.began(time(), "cmpl-batch", f"cmpl-batch-{number}-7f", 5)
    with opened(browser, at(server, "cmpl-batch")) as page:
        page.get_by_text("… 6 earlier sequences …").wait_for()
        assert page.get_by_text("sequence 7 of 70").count() == 1


def test_it_is_reached_from_a_list_by_keyboard_and_follows_its_request_to_the_end(browser: Browser) -> None:
    with (
        page_server(PretendCluster(3), past_s=120, steps=False) as server,
        opened(browser, f"{server.url}/llumnix/#requests") as page,
    ):
        one = max(server.cluster.all.values(), key=lambda each: migration_freeness(each.snapshot(), None))
        request = next(each for each in one.running if not each.why_pinned)
        page.get_by_label("Part of an id").fill(request.id)
        link = page.locator("tbody th a")
        expect(link).to_have_count(1)
        tab_to(page, link.inner_text())
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=request.id).wait_for()
        assert page.evaluate("document.activeElement.id") == "main"
        page.locator(".state.running").wait_for()
        page.get_by_text(f"{one.info.id} gives nothing away: its freeness").wait_for()
        page.get_by_role("button", name=f"Move… {request.id}").wait_for()
        asked: list[str] = []
        page.on("request", lambda sent: asked.append(sent.url))
        one.running.remove(request)
        request.story.ended(time(), "stop", request.output)
        server.cluster.stories.over(request.story)
        page.get_by_text("It ended by itself after").wait_for()
        before = len(asked)
        page.wait_for_timeout(2200)
        assert len(asked) == before, "nobody asks for what does not change any more"


def test_it_is_reached_from_a_move_and_from_the_news(browser: Browser, server: PageServer) -> None:
    moved = server.cluster.records[-1]
    for view, where in (("moves", "tbody a.id"), ("cluster", ".news a.id")):
        with opened(browser, f"{server.url}/llumnix/#{view}") as page:
            page.locator(where).first.click()
            page.get_by_role("heading", name=moved.request_id).wait_for()
            assert page.url == at(server, moved.request_id)


@pytest.mark.parametrize("name", ["nobody", "a%20b%2Fc", "%E0%A4%A"])
def test_whoever_asks_for_one_that_nobody_knows_is_told_so(browser: Browser, server: PageServer, name: str) -> None:
    with opened(browser, f"{server.url}/llumnix/#story/{name}", complaints=True) as page:
        page.get_by_text("that is running or queued, or among the").wait_for()
        assert findings(page) == []
        page.get_by_role("link", name="All requests").click()
        page.get_by_label("Part of an id").wait_for()
        page.get_by_label("Part of an id").fill("cmpl-nobody")
        page.get_by_role("link", name="The story of exactly this id").click()
        page.get_by_role("heading", name="cmpl-nobody").wait_for()
