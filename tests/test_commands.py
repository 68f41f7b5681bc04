"""What the commands for a running server print and send, and what each says when that server cannot be asked."""

from __future__ import annotations

import http.server
import io
import json
import os
import pty
import socketserver
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from rich.console import Console

from admin_answers import (
    Answer,
    Install,
    drain_report,
    drained,
    instance_row,
    moved_answer,
    request_row,
    scaling_row,
    started_answer,
    state_answer,
    status_answer,
)
from llumnix.api.bodies import InstancesAnswer
from llumnix.cli import main
from llumnix.client import MOVE_TIMEOUT_S, AdminClient
from llumnix.commands import SERVER_COMMANDS
from llumnix.control.scheduler_events import DrainReport
from llumnix.status_table import print_status, watch_status
from llumnix.top import show

WORDS = {
    "status": [],
    "requests": [],
    "moves": [],
    "classes": [],
    "top": [],
    "explain": ["cmpl-1"],
    "migrate": ["cmpl-1", "i1"],
    "drain": ["i0"],
    "undrain": ["i0"],
    "role": ["i0", "decode"],
    "start": ["2"],
    "scale": ["3"],
    "restart": ["--rolling"],
}
"""Of each command that asks a server, a line that it accepts."""


class Server:
    """Instances that start and stop at once; remembers what was asked."""

    def __init__(self, *states: str) -> None:
        self.rows = [row(f"i{number}", state) for number, state in enumerate(states or ("running", "running"))]
        self.asked: list[str] = []
        self.scaling = scaling_row()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/llumnix/v1/")
        if request.method == "POST":
            self.asked.append(path)
            if path == "instances":
                self.start(**json.loads(request.content))
                return httpx.Response(202, json=started_answer(1))
            if path.endswith("/drain"):
                next(one for one in self.rows if one["id"] == path.split("/")[1])["state"] = "stopped"
            if path.endswith("/role"):
                return httpx.Response(200, json={"ok": True, "id": "i0", **json.loads(request.content)})
            changed = moved_answer() if path == "migrations" else state_answer("i0", "draining")
            return httpx.Response(200, json=changed)
        drains = [drain_report(one["id"], moved=1) for one in self.rows]
        lists: dict[str, Any] = {"drains": drains, "requests": REQUESTS, "migrations": MOVES, "classes": CLASSES}
        lists |= {"stories": [], "stays": {}}
        return httpx.Response(200, json=status_answer(*self.rows, scaling=self.scaling) | lists)

    def start(self, count: int, replaces: str | None) -> None:
        self.asked[-1] += f" {count}" + (f" for {replaces}" if replaces else "")
        self.rows += [row(f"i{len(self.rows) + number}", "running") for number in range(count)]


def row(instance: str, state: str, **facts: Any) -> dict[str, Any]:
    return instance_row(instance, state, **{"running": 1} | facts)


REQUESTS = [
    request_row("cmpl-b", "i1", state="waiting"),
    request_row("cmpl-a", "i0"),
    request_row("cmpl-c", "i0", movable=False, why_pinned="it has images"),
]
MOVES = [
    {"at": 20.0, "request_id": "cmpl-a", "source": "i0", "target": "i1", "reason": "by hand", "outcome": "moved"}
    | {"bytes": 1_835_008, "downtime_ms": 7.3, "move_id": "front-0-8"},
    {"at": 10.0, "request_id": "cmpl-b", "source": "i1", "target": "i0", "reason": "freeness 1 against 9"}
    | {"outcome": "stayed: no room", "bytes": 0, "downtime_ms": None},
]


CLASSES: list[dict[str, Any]] = [
    {"class": "", "tenant": "", "refused": {"403": 2}},
    {"class": "fast", "tenant": "alice", "held": 3, "running": 2, "work": 1234.5, "tokens_per_minute": 98_000}
    | {"ttft_met": 9, "ttft_missed": 1, "refused": {"503": 7, "429": 1}},
]


Captured = pytest.CaptureFixture[str]


def lines(capsys: Captured) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


# what they show


def test_requests_are_listed_by_instance_with_whether_they_can_move(answer_with: Install, capsys: Captured) -> None:
    answer_with(Server())
    assert main(["requests"]) == 0
    _, *rows = lines(capsys)
    assert [(row[0], row[1]) for row in rows] == [("cmpl-a", "i0"), ("cmpl-c", "i0"), ("cmpl-b", "i1")]
    assert rows[0] == ["cmpl-a", "i0", "running", "normal", "3", "70", "2", "yes"]
    assert " ".join(rows[1]).endswith("no: it has images")


@pytest.mark.parametrize(
    ("flags", "shown"),
    [(["--instance", "i0"], {"cmpl-a", "cmpl-c"}), (["--state", "waiting"], {"cmpl-b"})],
)
def test_requests_can_be_picked(answer_with: Install, capsys: Captured, flags: list[str], shown: set[str]) -> None:
    answer_with(Server())
    assert main(["requests", "--json", *flags]) == 0
    assert {row["id"] for row in json.loads(capsys.readouterr().out)["requests"]} == shown


def test_nothing_to_list_is_said_in_words(answer_with: Install, capsys: Captured) -> None:
    answer_with(lambda request: httpx.Response(200, json={"requests": [], "migrations": [], "classes": []}))
    assert main(["requests"]) == main(["moves"]) == main(["classes"]) == 0
    assert capsys.readouterr().out == "no request runs or waits\nnothing has moved yet\nno request has come yet\n"


def test_moves_are_listed_with_the_newest_last(answer_with: Install, capsys: Captured) -> None:
    server = Server()
    answer_with(server)
    assert main(["moves"]) == 0
    _, first, last = lines(capsys)
    assert first[1:] == ["cmpl-b", "i1", "i0", "–", "–", "stayed:", "no", "room", "–", "freeness", "1", "against", "9"]
    assert last[1:] == ["cmpl-a", "i0", "i1", "7.3", "ms", "1.8", "moved", "front-0-8", "by", "hand"]


def test_classes_are_listed_with_the_share_of_those_that_were_in_time(answer_with: Install, capsys: Captured) -> None:
    answer_with(Server())
    assert main(["classes"]) == 0
    _, nameless, fast = capsys.readouterr().out.splitlines()
    assert nameless.split() == ["–", "–", "0", "0", "0", "0", "–", "–", "2", "×", "403"]
    assert fast.split()[:6] == ["fast", "alice", "3", "2", "98,000", "1,234"]
    assert " ".join(fast.split()[6:]) == "90.0% of 10 – 1 × 429, 7 × 503"


def test_what_goes_into_a_pipe_is_not_cut(answer_with: Install, capsys: Captured) -> None:
    long = MOVES[0] | {"reason": "why " * 100 + "end"}
    answer_with(lambda request: httpx.Response(200, json={"migrations": [long]}))
    assert main(["moves"]) == 0
    assert lines(capsys)[1][-1] == "end"


def test_watch_into_a_pipe_shows_one_table_after_the_other_and_waits_for_a_server_that_went(
    answer_with: Install, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([Server("running"), Server("draining")])
    naps: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        server = next(answers, None)
        if server is None:
            raise httpx.ConnectError("refused")
        return server(request)

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    answer_with(answer)
    monkeypatch.setattr("llumnix.status_table.time.sleep", sleep)
    assert main(["status", "--watch", "--interval-s", "2"]) == 0
    out = capsys.readouterr().out
    assert naps == [2.0, 2.0, 2.0]
    assert out.index("running") < out.index("draining") < out.index("No server answers at http://127.0.0.1:8000")


def test_watch_on_a_terminal_stays_in_place_until_ctrl_c() -> None:
    text = io.StringIO()
    answers = iter([Server("running"), Server("draining"), Server("stopped")])

    def ask() -> InstancesAnswer:
        server = next(answers, None)
        if server is None:
            raise KeyboardInterrupt
        return msgspec.convert({"instances": server.rows}, InstancesAnswer)

    watch_status(ask, 0.0, Console(file=text, force_terminal=True, width=100))
    out = text.getvalue()
    assert out.index("running") < out.index("draining") < out.index("stopped")
    assert "\x1b[1A" in out  # back up over what was shown before


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What is written to it is typed."""
    keys, terminal = pty.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield keys
    os.close(keys)


def test_top_fills_the_screen_and_no_more_until_it_is_told_to_end(answer_with: Install, keyboard: int) -> None:
    server = Server()
    many = [request_row(f"cmpl-{n:02}", "i0", output_tokens=n, migrations=-n % 7) for n in range(50)]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=server(request).json() | {"requests": many})

    answer_with(answer)
    before = termios.tcgetattr(sys.stdin)
    os.write(keyboard, b"m?q")
    text = io.StringIO()
    show(AdminClient("http://server"), 60.0, Console(file=text, force_terminal=True, width=150, height=24))
    by_tokens, by_moves, unknown_key = text.getvalue().split("q quit")[1:]
    assert "50 requests, most tokens first" in by_tokens
    assert by_tokens.index("cmpl-49") < by_tokens.index("cmpl-48")
    assert "cmpl-06" not in by_tokens, "there is no room for the smallest"
    assert all(picture.count("\n") <= 24 for picture in (by_tokens, by_moves))
    assert "most moves first" in by_moves
    assert "cmpl-01" in by_moves
    assert "most moves first" in unknown_key
    assert termios.tcgetattr(sys.stdin) == before, "the terminal is as it was"


def test_top_shows_that_the_server_went_and_waits_for_it(answer_with: Install, keyboard: int) -> None:
    answered = iter(range(3))  # the first picture: status, requests, moves

    def answer(request: httpx.Request) -> httpx.Response:
        if next(answered, None) is None:
            raise httpx.ConnectError("refused")
        return Server()(request)

    answer_with(answer)
    os.write(keyboard, b"xq")
    text = io.StringIO()
    show(AdminClient("http://server"), 60.0, Console(file=text, force_terminal=True, width=150, height=24))
    assert "cmpl-a" in text.getvalue()
    assert "No server answers at http://server" in text.getvalue()


def test_top_into_a_pipe_shows_all_once(answer_with: Install, capsys: Captured) -> None:
    answer_with(Server())
    assert main(["top"]) == 0
    out = capsys.readouterr().out
    for words in ("i1", "3 requests", "cmpl-c", "stayed: no room"):
        assert words in out


def test_top_of_a_single_request(answer_with: Install, capsys: Captured) -> None:
    server = Server()

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=server(request).json() | {"requests": [request_row("cmpl-a", "i0")]})

    answer_with(answer)
    assert main(["top"]) == 0
    assert "1 request, most tokens first" in capsys.readouterr().out


# what they do


def test_undrain_names_the_instance(answer_with: Install, capsys: Captured) -> None:
    server = Server()
    answer_with(server)
    assert main(["undrain", "i1"]) == 0
    assert server.asked == ["instances/i1/undrain"]
    assert capsys.readouterr().out == "i1 takes requests again\n"


def test_role_is_given_and_shown(answer_with: Install, capsys: Captured) -> None:
    asked: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.content))
        if request.method == "POST":
            return httpx.Response(200, json={"ok": True, "id": "i1", "role": "prefill"})
        rows = [instance_row("i0"), instance_row("i1", role="prefill")]
        return httpx.Response(200, json=status_answer(*rows))

    answer_with(answer)
    assert main(["role", "i1", "prefill"]) == 0
    assert asked == [("/llumnix/v1/instances/i1/role", b'{"role":"prefill"}')]
    assert capsys.readouterr().out == "i1 is prefill from now on\n"
    assert main(["status"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[:3]] == ["role", "mixed", "prefill"]
    assert main(["role", "i1", "both"]) == 2


def test_name_with_a_slash_stays_one_name(answer_with: Install) -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        return httpx.Response(404, json={"ok": False, "reason": "There is no instance 'a/b'."})

    answer_with(answer)
    assert main(["drain", "a/b"]) == 2
    assert asked == [b"/llumnix/v1/instances/a%2Fb/drain"]


def test_start_begins_as_many_as_said_and_can_wait(answer_with: Install, capsys: Captured) -> None:
    server = Server("running")
    answer_with(server)
    assert main(["start", "2", "--wait"]) == 0
    assert capsys.readouterr().out == "starting 2 more\ni1, i2 run\n"
    assert main(["start", "--replaces", "i0"]) == 0
    assert server.asked[-1] == "instances 1 for i0"
    assert main(["start", "2", "--replaces", "i0"]) == 2
    assert "--replaces is for one instance." in capsys.readouterr().err
    assert main(["start"]) == 0
    assert main(["start", "100"]) == 0  # in two orders: one may start 64
    assert server.asked == ["instances 2", "instances 1 for i0", "instances 1", "instances 64", "instances 36"]


@pytest.mark.parametrize(
    ("states", "count", "asked"),
    [
        (("running", "running"), 4, ["instances 2"]),
        (("running", "starting"), 3, ["instances 1"]),
        (("running", "starting"), 2, []),
        (("running", "stopped", "draining"), 1, []),
        (("running", "running", "running"), 1, ["instances/i0/drain", "instances/i1/drain"]),
    ],
)
def test_scale_starts_or_drains_the_difference(
    answer_with: Install, states: tuple[str, ...], count: int, asked: list[str]
) -> None:
    server = Server(*states)
    answer_with(server)
    assert main(["scale", str(count)]) == 0
    assert server.asked == asked


def test_scale_drains_those_with_the_least_to_do(answer_with: Install, capsys: Captured) -> None:
    server = Server("running", "running", "running")
    server.rows[0] |= {"running": 9}
    server.rows[1] |= {"waiting": 4}
    answer_with(server)
    assert main(["scale", "2", "--wait"]) == 0
    assert server.asked == ["instances/i2/drain"]
    assert capsys.readouterr().out.endswith("i2 is empty after 0.50 s: 1 moved, 0 replayed, 0 finished\n")


def test_scale_drains_the_first_of_those_that_have_as_little_to_do(answer_with: Install) -> None:
    server = Server(*["running"] * 11)
    server.rows = [row for row in server.rows if row["id"] in ("i10", "i2")]
    answer_with(server)
    assert main(["scale", "1"]) == 0
    assert server.asked == ["instances/i2/drain"]


@pytest.mark.parametrize(("count", "leave"), [(2, ["i1"]), (1, ["i1", "i0"])])
def test_scale_spares_the_last_instance_for_prompts_as_long_as_there_are_others(
    answer_with: Install, count: int, leave: list[str]
) -> None:
    server = Server("running", "running", "running")
    for each, role, running in zip(server.rows, ("prefill", "decode", "decode"), (0, 3, 4), strict=True):
        each |= {"role": role, "running": running}
    answer_with(server)
    assert main(["scale", str(count)]) == 0
    assert server.asked == [f"instances/{instance}/drain" for instance in leave]


def test_scale_counts_what_was_ordered_and_is_not_listed_yet(answer_with: Install) -> None:
    server = Server("running")
    server.scaling |= {"serving": 1, "starting": 2}
    answer_with(server)
    assert main(["scale", "4"]) == 0
    assert server.asked == ["instances 1"]


@pytest.mark.parametrize("listed", [True, False])
def test_scale_said_twice_orders_once_though_what_was_ordered_waits_for_room(
    answer_with: Install, capsys: Captured, listed: bool
) -> None:
    """While it waits it is listed as starting; in a pause between attempts it is not listed."""
    server = Server("running", "running", *(["starting"] if listed else []))
    server.scaling |= {"serving": 2, "failing": 1}
    answer_with(server)
    assert main(["scale", "3"]) == 0
    assert server.asked == []
    said = "3 serve, or were ordered, already (1 waiting for room or for another attempt)\n"
    assert capsys.readouterr().out == said
    assert main(["scale", "4"]) == 0
    assert server.asked == ["instances 1"]
    assert capsys.readouterr().out.startswith("ordered before: 1 waiting for room or for another attempt\n")


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("count", "asked"), [(2, []), (1, ["instances/i0/drain"])])
def test_scale_drains_none_that_serves_for_one_that_may_never_come(
    answer_with: Install, listed: bool, count: int, asked: list[str]
) -> None:
    server = Server("running", "running", *(["starting"] if listed else []))
    server.scaling |= {"serving": 2, "failing": 1}
    answer_with(server)
    assert main(["scale", str(count)]) == 0
    assert server.asked == asked


class SlowServer(Server):
    """Whose instances start at the fourth look, those that were ordered before it was asked included."""

    looks = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.looks += request.url.path.endswith("/instances") and request.method == "GET"
        if self.looks >= 4:
            for each in self.rows:
                each["state"] = each["state"].replace("starting", "running")
        return super().__call__(request)

    def start(self, count: int, replaces: str | None) -> None:
        super().start(count, replaces)
        for each in self.rows[-count:]:
            each["state"] = "starting"


@pytest.mark.parametrize(
    ("states", "count", "said"),
    [
        (("running", "starting"), 2, ["2 serve already (1 still starting)", "i1 runs"]),
        (("running", "starting"), 4, ["starting 2 more", "i1, i2, i3 run"]),
        (("running", "running"), 2, ["2 serve already"]),
        (("running", "running", "starting"), 2, ["i0 is being emptied and then stops", "i2 runs"]),
    ],
)
def test_scale_waits_until_as_many_run(
    answer_with: Install,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    states: tuple[str, ...],
    count: int,
    said: list[str],
) -> None:
    server = SlowServer(*states)
    answer_with(server)
    monkeypatch.setattr("llumnix.operations.time.sleep", lambda seconds: None)
    assert main(["scale", str(count), "--wait"]) == 0
    out = [line for line in capsys.readouterr().out.splitlines() if "is empty" not in line]
    assert out == said
    assert [each["state"] for each in server.rows].count("running") == count


def test_scale_says_how_long_it_has_waited_in_vain(answer_with: Install, capsys: Captured) -> None:
    answer_with(Server("running", "starting"))
    assert main(["scale", "2", "--wait", "--timeout-s", "0"]) == 1
    assert capsys.readouterr().err == "llumnix: Fewer than 2 instances run within 0 s.\n"


def test_drain_is_waited_for_beyond_the_time_that_it_is_given(
    answer_with: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def waited(client: AdminClient, instance: str, timeout_s: float) -> DrainReport:
        waits.append(timeout_s)
        return drained(instance)

    answer_with(Server())
    monkeypatch.setattr("llumnix.operations.wait_for_drain", waited)
    assert main(["drain", "i0", "--wait", "--timeout-s", "7200"]) == main(["drain", "i1", "--wait"]) == 0
    assert waits == [10_800.0, 3600.0]


def test_scale_does_not_fight_with_auto_scaling(answer_with: Install, capsys: Captured) -> None:
    server = Server("running")
    server.scaling["mode"] = "on"
    answer_with(server)
    assert main(["scale", "4"]) == 2
    assert "Auto-scaling is on" in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize("words", [["scale", "0"], ["scale", "x"], ["start", "-1"], ["moves", "--limit", "0"]])
def test_numbers_that_are_none_are_refused(words: list[str], capsys: Captured) -> None:
    assert main(words) == 2
    assert "is no number from 1 to" in capsys.readouterr().err


# where they ask


def test_address_and_key_come_from_the_environment(answer_with: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    server = Server()

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((f"{request.url.host}:{request.url.port}", request.headers["Authorization"]))
        return server(request)

    answer_with(answer)
    monkeypatch.setenv("LLUMNIX_URL", "http://elsewhere:81/v1")
    monkeypatch.setenv("LLUMNIX_API_KEY", "sesame")
    for name, words in WORDS.items():
        assert main([name, *words]) == 0
    assert set(seen) == {("elsewhere:81", "Bearer sesame")}


def test_client_waits_longer_for_a_move_than_for_an_answer(answer_with: Install) -> None:
    waits: dict[str, float] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        waits[request.method] = request.extensions["timeout"]["read"]
        return Server()(request)

    answer_with(answer)
    client = AdminClient("http://server")
    client.status()
    client.migrate("cmpl-1", "i1")
    assert waits == {"GET": 30.0, "POST": MOVE_TIMEOUT_S}


# what goes wrong


def refuse(error: Exception) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    return answer


def reply(status: int, **body: Any) -> Answer:
    return lambda request: httpx.Response(status, **body)


def not_verified(why: str) -> Answer:
    """As OpenSSL says it."""
    said = f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {why} (_ssl.c:1006)"
    return refuse(httpx.ConnectError(said))


FAILURES: list[tuple[str, Answer, int, str]] = [
    ("nobody listens", refuse(httpx.ConnectError("[Errno 111] Connection refused")), 1, "No server answers at"),
    ("unknown host", refuse(httpx.ConnectError("[Errno -2] Name or service not known")), 1, "No server answers at"),
    ("silence", refuse(httpx.ReadTimeout("timed out")), 1, "did not answer in time"),
    ("TLS where there is none", refuse(httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version")), 1, "http://?"),
    ("no TLS where it is", refuse(httpx.RemoteProtocolError("Server disconnected")), 1, "begin with https://?"),
    ("private CA", not_verified("unable to get local issuer certificate"), 1, "name the file of its CA"),
    ("self-signed", not_verified("self-signed certificate"), 1, "name the file of its CA"),
    ("expired", not_verified("certificate has expired"), 1, "is not valid: certificate has expired."),
    ("another name", not_verified("IP address mismatch, certificate is not valid for '::1'."), 1, "for '::1'."),
    ("wants a certificate", refuse(httpx.ReadError("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tls")), 1, "of ours?"),
    ("wants one, by TLS 1.2", refuse(httpx.ConnectError("[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] ssl")), 1, "of ours?"),
    ("TLS of another kind", refuse(httpx.ConnectError("[SSL: DH_KEY_TOO_SMALL] dh key")), 1, "TLS with the server at"),
    ("broken off", refuse(httpx.ReadError("")), 1, "hung up without an answer"),
    ("no key", reply(401, json={"error": "Unauthorized"}), 2, "wants its API key"),
    ("another server", reply(404, json={"detail": "Not Found"}), 1, "is not Llumnix"),
    ("a web page", reply(200, text="<html>hello</html>"), 1, "is not Llumnix"),
    ("a web page for what is missing", reply(404, text="<html>no</html>"), 1, "is not Llumnix"),
    ("JSON that is no object", reply(200, json=[1, 2]), 1, "is not Llumnix"),
    ("an object of something else", reply(200, json={"hello": "world"}), 1, "is not Llumnix"),
    ("sent on to elsewhere", reply(307, headers={"Location": "http://x/"}), 1, "is not Llumnix"),
    ("a proxy whose server is down", reply(502, text="<html>Bad Gateway</html>"), 1, "HTTP status 502"),
    ("a crash", reply(500, json={"error": {"message": "It broke."}}), 1, "It broke."),
    ("starting up", reply(503, json={"reason": "The scheduler does not answer."}), 1, "The scheduler does not"),
]


def test_every_command_for_a_server_is_in_the_table() -> None:
    assert set(WORDS) == set(SERVER_COMMANDS)


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize(("situation", "answer", "code", "words"), FAILURES, ids=[case[0] for case in FAILURES])
def test_every_failure_is_one_sentence(
    answer_with: Install, capsys: Captured, name: str, situation: str, answer: Answer, code: int, words: str
) -> None:
    answer_with(answer)
    assert main([name, *WORDS[name]]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("llumnix: ")
    assert words in err
    assert err.count("\n") == 1


NO_HOSTS = [
    "http://[::1",
    "http://a..b:9",
    "http://.",
    "http://xn--a",
    "http://127.0.0.256",
    "http://h:9\r",
    " http://h",
]


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("url", ["localhost:8000", "ftp://server", "http://", "http://host:port", *NO_HOSTS])
def test_address_that_is_none_is_bad_use(name: str, url: str, capsys: Captured) -> None:
    assert main([name, *WORDS[name], "--url", url]) == 2
    err = capsys.readouterr().err
    assert url.strip() in err
    assert " is not an address: " in err
    assert err.count("\n") == 1


UNUSABLE = [
    ("SSL_CERT_FILE", "/nowhere/ca.pem"),
    ("SSL_CERT_FILE", "/etc/hostname"),
    ("ALL_PROXY", "socks://proxy:1080"),
    ("ALL_PROXY", "socks5://proxy:1080"),
    ("HTTP_PROXY", "proxy:80:80"),
    ("NO_PROXY", "[::1"),
]


@pytest.mark.parametrize("words", [["status"], ["profile", "--url", "http://server", "--out", "profile.toml"]])
@pytest.mark.parametrize(("name", "value"), UNUSABLE)
def test_environment_that_cannot_be_used_is_bad_use(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, name: str, value: str, words: list[str]
) -> None:
    for other in ("SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "HTTP_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"llumnix: {name} names what cannot be used: ")


@pytest.mark.parametrize("name", WORDS)
def test_key_that_no_header_can_carry_is_bad_use(name: str, capsys: Captured) -> None:
    assert main([name, *WORDS[name], "--api-key", "ключ"]) == 2
    assert "--api-key" in capsys.readouterr().err


def test_server_of_an_earlier_version_is_shown_without_words(capsys: Captured) -> None:
    said = {"instances": [{"id": "i0", "state": "running", "freeness": 2.0}]}
    print_status(msgspec.convert(said, InstancesAnswer))
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["i0", "running"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status", "--interval-s", "2"], "--interval-s is for --watch."),
        (["start", "2", "--timeout-s", "5"], "--timeout-s is for --wait."),
        (["scale", "2", "--timeout-s", "5"], "--timeout-s is for --wait."),
    ],
)
def test_flag_that_counts_only_with_another_one(
    answer_with: Install, capsys: Captured, words: list[str], sentence: str
) -> None:
    server = Server("running")
    answer_with(server)
    assert main(words) == 2
    assert sentence in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize(
    ("url", "by"),
    [
        ("http://127.0.0.1:8000", None),
        ("https://127.1.2.3", None),
        ("http://localhost:8000/behind", None),
        ("http://[::1]:8000", None),
        ("http://server.example", "proxy.example"),
        ("https://10.0.0.1", "proxy.example"),
    ],
)
def test_server_of_this_machine_is_asked_past_the_proxy(monkeypatch: pytest.MonkeyPatch, url: str, by: str) -> None:
    """To which its own loopback is another one."""
    monkeypatch.setattr(os, "environ", dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://proxy.example:3128"))
    asked: list[str | None] = []

    def way(*, proxy: httpx.Proxy | None = None, **_: Any) -> httpx.MockTransport:
        def answer(_request: httpx.Request) -> httpx.Response:
            asked.append(None if proxy is None else proxy.url.host)
            return httpx.Response(200, json=status_answer())

        return httpx.MockTransport(answer)

    monkeypatch.setattr("httpx._client.HTTPTransport", way)
    assert main(["status", "--url", url]) == 0
    assert asked == [by]


@pytest.mark.io
def test_server_on_a_unix_socket_is_asked_by_its_path(tmp_path: Path, capsys: Captured) -> None:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = json.dumps(status_answer(instance_row("i0"))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None:
            pass

    path = tmp_path / "llm.sock"
    with socketserver.UnixStreamServer(str(path), Answers) as server:
        threading.Thread(target=server.handle_request).start()
        assert main(["status", "--json", "--url", f"unix:{path}"]) == 0
    assert json.loads(capsys.readouterr().out)["instances"][0]["id"] == "i0"


@pytest.mark.parametrize("words", [["status", "--url", "unix:"], ["profile", "--url", "unix:/s", "--out", "o"]])
def test_unix_socket_that_cannot_be_asked_is_bad_use(words: list[str], capsys: Captured) -> None:
    assert main(words) == 2
    assert "unix:" in capsys.readouterr().err
