"""`llumnix explain`: what it asks, and how it tells what it is answered."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import msgspec
import pytest

from admin_answers import Install, drained, scaling_row
from llumnix.api.bodies import JournalAnswer, StoryAnswer, WhyNotAnswer
from llumnix.cli import main
from llumnix.control.scaling import ScalingStep
from llumnix.decision_log import written_at_once
from llumnix.journal import entries as noted
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.journal.words import sentence
from llumnix.policy.dispatch import DispatchReason, Judged
from llumnix.policy.pairing import Rejection, Why
from llumnix.types import InstanceId
from move_outcomes import outcome

I0, I1 = InstanceId("i0"), InstanceId("i1")
REASON = DispatchReason("freeness", (Judged(I0, 21.5), Judged(I1, 3.0)), 2)

Captured = pytest.CaptureFixture[str]


def eventful(stories: Stories) -> None:
    """Two requests, one of which goes on."""
    story = stories.began(10.0, "cmpl-1", "cmpl-1-0-7f", 812)
    story.dispatched(10.0, REASON)
    story.scheduled(10.041)
    story.token(10.251, cached_tokens=64)
    story.stayed(12.0, outcome("i0", "i1", why_not="the target has no room"))
    story.moved(14.0, outcome("i0", "i1"), downtime_s=0.0073)
    story.preempted(15.0)
    story.scheduled(15.5)
    story.token(16.0)
    story.parked(17.0, "i1 was lost", last_token_s=16.5)
    story.replayed(17.5, REASON, "i1 was lost", 390, last_token_s=16.5)
    story.token(18.0)
    story.ended(19.36, "length", 391)
    stories.over(story)
    stories.began(19.5, "cmpl-2", "cmpl-2-0-7f", 5).dispatched(20.0, REASON)


TOLD = """\
cmpl-1 ended with as many tokens as it might have after 9.360 s: 812 + 391 tokens
where its time went: 0.041 s in the queue, 0.210 s prefill, 6.602 s decoding, 1.000 s preempted, 0.007 s lost to \
moves, 1.500 s lost with an instance
  +0.000 s  placed on i0: i0 has the best freeness of 2: 21.5 (next i1: 3)
  +0.251 s  first token on i0: 0.041 s in the queue, 0.210 s prefill; the cache had 64 tokens of its prompt
  +2.000 s  stayed on i0, and not to i1: the target has no room (tried: balance)
  +4.000 s  moved from i0 to i1: balance (0 stages, 0 bytes, 7.3 ms longer than a step; m1)
  +6.000 s  preempted on i1: 0.500 s until it was in the batch again, 1.000 s until its next token
  +7.000 s  waits for an instance: i1 was lost
  +7.500 s  goes on at i0, behind the 390 tokens that its client has: i1 was lost; i0 has the best freeness of 2: 21.5 \
(next i1: 3)
  +9.360 s  ended with as many tokens as it might have
"""


@pytest.fixture
def asked(answer_with: Install) -> list[str]:
    """Every client talks to a server that has this; what is asked of it."""
    stories, asked, mode = Stories(Journal("f0")), [], ["off", "on"]
    eventful(stories)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode().removeprefix("/llumnix/v1/"))
        path = request.url.path.removeprefix("/llumnix/v1/")
        if path == "scaling":
            return httpx.Response(200, json=scaling_row(mode=mode.pop(), serving=2, now="freeness 12 is fine"))
        if path == "why-not":
            return _json(WhyNotAnswer(moves="--no-migration", instances={I0: "i0 is roomy"}, starts="it is off"))
        if path.endswith("/story"):
            name = path.split("/")[1]
            stays = {"cmpl-2-0-7f": "it cannot move: it streams its input"} if name == "cmpl-2" else {}
            left_out = 1984 if name == "cmpl-2" else 0
            return _json(StoryAnswer(stories=[*stories.tell(name, 21.5).stories], stays=stays, left_out=left_out))
        entries = [entry for entry in stories.journal.newest(100).entries if entry.kind in ("moved", "stayed")]
        return _json(JournalAnswer(entries=entries, cursor="f0.9", lost=0))

    answer_with(answer)
    return asked


def _json(answer: msgspec.Struct) -> httpx.Response:
    return httpx.Response(200, content=msgspec.json.encode(answer))


def test_a_request_from_its_arrival_to_its_end(asked: list[str], capsys: Captured) -> None:
    assert main(["explain", "cmpl-1"]) == 0
    assert capsys.readouterr().out == TOLD
    assert asked == ["requests/cmpl-1/story"]


def test_a_request_that_goes_on_and_why_it_does_not_move(asked: list[str], capsys: Captured) -> None:
    assert main(["explain", "cmpl-2"]) == main(["explain", "--why-not", "cmpl-2"]) == 0
    why = "why it does not move: it cannot move: it streams its input"
    earlier = "… 1,984 earlier sequences …"
    assert capsys.readouterr().out.splitlines() == [
        earlier,
        "cmpl-2 goes on, 2.000 s after it arrived",
        "where its time went: 0.500 s before it was placed, 1.500 s in the queue",
        "  +0.500 s  placed on i0: i0 has the best freeness of 2: 21.5 (next i1: 3)",
        *(why, earlier, why),
    ]
    assert main(["explain", "--why-not", "cmpl-1"]) == 0
    assert capsys.readouterr().out == "it has ended\n"


def test_what_happened_to_the_size_is_told_while_the_scheduler_is_silent(
    answer_with: Install, capsys: Captured
) -> None:
    stories = Stories(Journal("f0"))
    eventful(stories)
    entries = [entry for entry in stories.journal.newest(100).entries if entry.kind == "moved"]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/scaling"):
            return httpx.Response(503, json={"reason": "The scheduler does not answer; it is being restarted."})
        return _json(JournalAnswer(entries=entries, cursor="f0.9", lost=0))

    answer_with(answer)
    assert main(["explain", "--scaling"]) == 0
    moved, now = capsys.readouterr().out.splitlines()
    assert "moved from i0 to i1" in moved
    assert now == "now: nobody says. The scheduler does not answer; it is being restarted."


def test_why_nothing_moves_at_all_and_nothing_leaves_an_instance(asked: list[str], capsys: Captured) -> None:
    assert main(["explain", "--why-not"]) == main(["explain", "--why-not", "i0"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "why nothing moves: --no-migration",
        "why none is started: it is off",
        "why none leaves it: i0 is roomy",
    ]
    assert asked == ["why-not", "why-not"]
    assert main(["explain", "--why-not", "i9"]) == 2
    assert capsys.readouterr().err == "llumnix: There is no instance 'i9' that takes requests.\n"


def test_an_instance_and_the_size_of_the_cluster(asked: list[str], capsys: Captured) -> None:
    assert main(["explain", "--instance", "i1", "--limit", "7"]) == 0
    stayed, moved = capsys.readouterr().out.splitlines()
    assert stayed == "    12.000 s  cmpl-1: stayed on i0, and not to i1: the target has no room (tried: balance)"
    assert moved.startswith("    14.000 s  cmpl-1: moved from i0 to i1")
    assert main(["explain", "--scaling"]) == 0
    sizes = "now: 2 serve, 0 drain, 0 start; "
    assert capsys.readouterr().out.splitlines()[-1] == f"{sizes}auto-scaling: freeness 12 is fine"
    assert main(["explain", "--scaling"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{sizes}auto-scaling is off"
    assert asked == [
        "journal?limit=7&instance=i1",
        *("journal?limit=100&kind=scale%2Cdrain%2Cinstance", "scaling") * 2,
    ]


def test_an_instance_of_which_nothing_is_known(answer_with: Install, capsys: Captured) -> None:
    answer_with(lambda request: _json(JournalAnswer(entries=[], cursor="f0.0", lost=0)))
    assert main(["explain", "--instance", "i0"]) == 0
    assert capsys.readouterr().out == "nothing is known to have happened\n"


def test_the_answer_as_it_is(asked: list[str], capsys: Captured) -> None:
    assert main(["explain", "cmpl-2", "--json"]) == 0
    (story,) = json.loads(capsys.readouterr().out)["stories"]
    assert (story["request"], [entry["what"]["kind"] for entry in story["entries"]]) == ("cmpl-2", ["dispatch"])


def test_a_log_says_the_same_when_the_server_is_gone(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "log"
    with written_at_once(path) as write:
        eventful(Stories(Journal("f0", listener=write)))
    assert main(["explain", "cmpl-1", "--log", str(path)]) == 0
    assert capsys.readouterr().out == TOLD
    assert main(["explain", "--instance", "i1", "--limit", "2", "--log", str(path)]) == 0
    kinds = [line.split()[3] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["moved", "preempted"]
    assert main(["explain", "--scaling", "--log", str(path)]) == 0
    assert capsys.readouterr().out == "nothing is known to have happened\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "One of the arguments REQUEST --why-not --instance --scaling is required"),
        (["cmpl-1", "--scaling"], "not allowed with argument"),
        (["--why-not", "--log", "x"], "--why-not is about what is now: a log does not know it."),
        (["cmpl-1", "--log", "/no/log"], "There is no decision log /no/log."),
        (["--scaling", "--limit", "0"], "--limit must be between 1 and 1000, not 0."),
        (["cmpl-1", "--limit", "5"], "--limit is for --instance and --scaling."),
        (["--why-not", "--limit", "5"], "--limit is for --instance and --scaling."),
    ],
)
def test_bad_use_is_a_sentence(words: list[str], sentence: str, capsys: Captured) -> None:
    assert main(["explain", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_log_that_has_nothing_about_it(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "log").touch()
    assert main(["explain", "cmpl-9", "--log", str(tmp_path / "log")]) == 2
    assert capsys.readouterr().err == f"llumnix: {tmp_path}/log has nothing about a request cmpl-9.\n"
    assert main(["explain", "--instance", "i9", "--log", str(tmp_path / "log")]) == 2
    assert capsys.readouterr().err == f"llumnix: {tmp_path}/log has nothing about an instance i9.\n"


def test_a_log_says_which_instances_it_knows(tmp_path: Path, capsys: Captured) -> None:
    with written_at_once(tmp_path / "log") as write:
        eventful(Stories(Journal("f0", listener=write)))
    assert main(["explain", "--instance", "i0000", "--log", str(tmp_path / "log")]) == 2
    assert capsys.readouterr().err.endswith("log has nothing about an instance i0000; there are i0, i1.\n")


def test_a_log_is_asked_by_the_beginning_of_an_id(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "log"
    with written_at_once(path) as write:
        stories = Stories(Journal("f0", listener=write))
        for name in ("cmpl-91b7", "cmpl-91c7"):
            story = stories.began(0.5, name, f"{name}-0-7f", 9)
            story.ended(1.0, "abort", 0)
    assert main(["explain", "cmpl-91b", "--log", str(path)]) == 0
    whole = capsys.readouterr().out
    assert whole.startswith("cmpl-91b7 ")
    assert main(["explain", "cmpl-9", "--log", str(path)]) == 2
    assert capsys.readouterr().err == "llumnix: 'cmpl-9' is the beginning of several ids; write more of it.\n"


def test_every_kind_has_words() -> None:
    """Of requests they are above; of the cluster, and of one that was refused:"""
    ended = drained("i0", each=1, seconds=1.5)
    step = ScalingStep(at=1.0, reason="freeness 3 below 10", start=1, carried_out=False)
    nothing = Rejection(I0, None, Why.NOTHING_TO_GIVE)
    said: dict[noted.AnyNoted, str] = {
        noted.RefusalNoted(503): "refused (503): because",
        noted.InstanceNoted(serves=True): "i0 serves",
        noted.InstanceNoted(serves=False): "i0 is gone: because",
        noted.RoundNoted((nothing,), left_out=2): "turned down: i0: it has no request that can move; and 2 more",
        noted.RoundNoted(()): "nobody is turned down",
        noted.ScalingNoted(step): "auto-scaling would start 1: freeness 3 below 10",
        noted.DrainNoted(None): "i0: because",
        noted.DrainNoted(
            ended
        ): "drain of i0 has ended (empty) after 1.500 s: 1 moved, 1 replayed, 1 ended there, 1 left",
    }
    journal = Journal("s")
    assert {what: sentence(journal.note(1.0, what, instance=I0, why="because")) for what in said} == said
