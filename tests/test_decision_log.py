"""The file that a process writes its journal to."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from full_disk import full_beyond
from llumnix import decision_log
from llumnix.cluster.preflight_paths import check_decision_log
from llumnix.decision_log import DecisionLog, begin_journal, read_log, written_at_once
from llumnix.errors import UsageError
from llumnix.journal.entries import ParkingNoted
from llumnix.journal.journal import Journal

pytestmark = pytest.mark.io


def test_all_processes_of_a_server_are_read_together_by_time(tmp_path: Path) -> None:
    path = tmp_path / "log"
    journals = [begin_journal(by, str(path)) for by in ("f0", "s")]
    for number in range(6):
        journals[number % 2][0].note(float(number), ParkingNoted(), f"r{number}")
    for _, close in journals:
        close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.f0", "log.s"]
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}  # ids of clients are in it
    assert sorted(entry.request or "" for entry in read_log(path)) == [f"r{number}" for number in range(6)]
    times = [entry.at_s for entry in read_log(path)]
    assert times == sorted(times)


def test_the_numbers_of_a_process_that_is_replaced_stay_behind_those_of_its_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within a millisecond, in which it noted nearly a thousand things."""
    now_ns = [10**18]
    monkeypatch.setattr(time, "time_ns", lambda: now_ns[0])
    first, _ = begin_journal("f0", "")
    last = [first.note(0.0, ParkingNoted()).seq for _ in range(999)][-1]
    now_ns[0] += 10**6
    second, _ = begin_journal("f0", "")
    assert second.note(0.0, ParkingNoted()).seq > last


def test_a_live_journal_follows_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _ = begin_journal("f0", "")
    before = journal.note(time.monotonic(), ParkingNoted()).at_s
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600.0)
    after = journal.note(time.monotonic(), ParkingNoted()).at_s
    assert -3601.0 < after - before < -3590.0


def test_what_was_noted_after_a_clock_was_set_back_is_read_after_what_was_before(tmp_path: Path) -> None:
    clock_s = 1000.0
    log = DecisionLog(tmp_path / "log.f0")
    journal = Journal("f0", clock_s=lambda: clock_s, listener=log.write)
    for clock_s, request in ((1000.0, "first"), (940.0, "second"), (941.0, "third")):  # noqa: B007
        journal.note(0.0, ParkingNoted(), request)
    log.close()
    assert [entry.request for entry in read_log(tmp_path / "log")] == ["first", "second", "third"]


def test_whoever_notes_does_not_wait_for_the_disk_and_the_log_tells_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = threading.Event()
    monkeypatch.setattr(decision_log, "_MOST_WAITING", 10)
    monkeypatch.setattr(DecisionLog, "_append", lambda self, entries: held.wait(10))
    log = DecisionLog(tmp_path / "log")
    journal = Journal("f0", listener=log.write)
    for number in range(100):
        journal.note(float(number), ParkingNoted())
    held.set()
    log.close()
    (said,) = caplog.messages
    assert re.fullmatch(r"decision log: entries that were not written so far: (8[0-9]|90) \(the disk .*", said)


def test_a_full_disk_costs_entries_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = DecisionLog(tmp_path / "gone" / "log")
    log.write(Journal("f0").note(1.0, ParkingNoted()))
    log.close()
    assert caplog.messages == ["decision log: entries that were not written so far: 1 (the disk is full, or too slow)"]


def test_a_disk_that_was_full_for_a_while_leaves_no_half_entry(tmp_path: Path) -> None:
    journal, path = Journal("f0"), tmp_path / "log.f0"
    log = DecisionLog(path)
    log._append([journal.note(1.0, ParkingNoted(), "r1")])
    with full_beyond(path.stat().st_size + 20), pytest.raises(OSError, match="large"):
        log._append([journal.note(2.0, ParkingNoted(), "r2")])
    log.write(journal.note(3.0, ParkingNoted(), "r3"))
    log.close()
    assert [entry.request for entry in read_log(tmp_path / "log")] == ["r1", "r3"]


def test_a_large_file_makes_room_for_a_new_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(decision_log, "_LARGEST", 1000)
    journal, path = Journal("f0"), tmp_path / "log.f0"
    for number in range(30):
        log = DecisionLog(path)
        log.write(journal.note(float(number), ParkingNoted(), f"r{number}"))
        log.close()
    assert {file.name for file in tmp_path.iterdir()} == {"log.f0", "log.f0.1"}
    assert all(file.stat().st_size < 1200 for file in tmp_path.iterdir())
    last = [entry.request for entry in read_log(tmp_path / "log")]
    assert last == [f"r{number}" for number in range(30 - len(last), 30)]


def test_what_a_killed_process_did_not_write_to_its_end_is_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with written_at_once(path) as write:
        write(Journal("f0").note(1.0, ParkingNoted(), "r"))
    path.write_bytes(path.read_bytes() + b'{"at":2.0,"by"')
    assert [entry.request for entry in read_log(path)] == ["r"]


@pytest.mark.parametrize("text", ["not JSON\n", '{"at": 1.0}\n', '{"at": 1.0, "by": "\xff"}\n'])
def test_another_file_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"log:1: not an entry of a decision log: .*\.$"):
        read_log(path)


def test_no_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no decision log"):
        read_log(tmp_path / "log")
    with pytest.raises(UsageError, match="Cannot write the decision log"), written_at_once(tmp_path / "no" / "log"):
        pass


def test_a_server_that_could_not_write_it_does_not_start(tmp_path: Path) -> None:
    check_decision_log("")
    check_decision_log("-")
    check_decision_log(str(tmp_path / "log"))
    with pytest.raises(UsageError, match=r"--decision-log .*no/log cannot be written: .*no is no folder"):
        check_decision_log(str(tmp_path / "no" / "log"))
