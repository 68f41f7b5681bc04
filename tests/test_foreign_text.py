"""What clients chose and what engines said reaches an operator's terminal as text, and as nothing else."""

from __future__ import annotations

import io
from typing import Any

import httpx
import msgspec
import pytest
from rich.console import Console

from admin_answers import Install, scaling_row
from llumnix.api.bodies import StoryAnswer
from llumnix.cli import main
from llumnix.commands import SERVER_COMMANDS
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.policy.dispatch import DispatchReason, Judged
from llumnix.report.records import Records, RequestRecord
from llumnix.report.summary import print_summary, summarize
from llumnix.sim.class_summary import ClassSummary, print_class_summaries
from llumnix.types import InstanceId
from llumnix.whatif.metrics import Metric
from llumnix.whatif.prediction import Credibility
from llumnix.whatif.report import TriedAlternative, WhatIf, print_what_if
from test_commands import WORDS, Server

BAD = "a[/]b[red]:100:\x1b]0;owned\x07\r\n\x9b31m\u202e"
SHOWN = r"a[/]b[red]:100:\x1b]0;owned\x07\r\n\x9b31m\u202e"
THEIRS = {"id", "request_id", "request", "why_pinned", "reason", "why", "class", "tenant", "model", "now"}
"""Names of what others fill."""
WITHOUT = {"drain", "undrain", "role"}
"""Whose answers say nothing of others."""

Captured = pytest.CaptureFixture[str]


def with_bad(answer: Any) -> Any:
    """The same, and at the end of every text of others what they should not have said."""
    if isinstance(answer, list):
        return [with_bad(each) for each in answer]
    if not isinstance(answer, dict):
        return answer
    spoilt = {name: with_bad(value) for name, value in answer.items()}
    return spoilt | {
        name: f"{value}{BAD}" for name, value in answer.items() if name in THEIRS and value and isinstance(value, str)
    }


class BadServer(Server):
    def __call__(self, request: httpx.Request) -> httpx.Response:
        if "/story" in request.url.path:
            stories = Stories(Journal("f0"))
            reason = DispatchReason("freeness", (Judged(InstanceId("i0"), 1.0),), 1)
            stories.began(10.0, "cmpl-1", "cmpl-1-0-7f", 812).dispatched(10.0, reason)
            told = msgspec.to_builtins(
                StoryAnswer(stories=[*stories.tell("cmpl-1", 12.0).stories], stays={"cmpl-1-0-7f": f"no{BAD}"})
            )
            return httpx.Response(200, json=with_bad(told))
        path = request.url.path.replace(BAD, "")
        answer = super().__call__(httpx.Request(request.method, f"http://server{path}", content=request.content))
        return httpx.Response(answer.status_code, json=with_bad(answer.json()))


@pytest.mark.parametrize("command", SERVER_COMMANDS)
def test_no_command_prints_more_than_text(answer_with: Install, capsys: Captured, command: str) -> None:
    server = BadServer()
    server.scaling = scaling_row(mode="advise", now="all is well")
    answer_with(server)
    flags = {"drain": ["--wait"], "start": ["--wait"], "scale": ["--wait"], "restart": ["--timeout-s=5"]}
    ids = [f"{word}{BAD}" if word[0] == "c" else word for word in WORDS[command]]
    assert main([command, *ids, *flags.get(command, [])]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.isprintable()] == []
    assert (SHOWN in out) == (command not in WITHOUT)


def test_a_sentence_of_the_server_is_text_too(answer_with: Install, capsys: Captured) -> None:
    answer_with(lambda request: httpx.Response(409, json={"reason": f"There is no room for {BAD}"}))
    assert main(["migrate", "cmpl-1"]) == 1
    assert capsys.readouterr().err == f"llumnix: There is no room for {SHOWN}\n"


def test_reports_of_runs_are_text(capsys: Captured) -> None:
    """Whose tenants, models and errors others named."""
    text = io.StringIO()
    console = Console(file=text, width=10_000)
    failed = RequestRecord(id="r", arrival_s=0.0, prompt_tokens=1, output_tokens=2, error=BAD)
    print_summary(summarize(Records([failed], [], []), {"model": BAD}), console)
    unknown = Credibility(metric=Metric("TTFT P50", "ttft_s", 50), measured=1.0, simulated=2.0, grade="good", why=BAD)
    tried = [TriedAlternative(name=BAD, instance_hours=1.0, predictions=[])]
    print_what_if(
        WhatIf(folder="", about=[BAD], instance_hours=1.0, repeats=1, known=[unknown], tried=tried),
        console,
    )
    counts = dict.fromkeys(("requests", "tokens", "ttft_met", "ttft_missed", "tpot_met", "tpot_missed"), 0)
    print_class_summaries([ClassSummary(cls=BAD, tenant=BAD, refused={}, ttft_s=None, tpot_s=None, **counts)])
    assert (text.getvalue() + capsys.readouterr().out).count(SHOWN) == 7
