"""The files of a recorded run."""

from __future__ import annotations

import gzip
import shutil
import threading
import time
from pathlib import Path

import msgspec
import pytest

from full_disk import full_beyond
from llumnix.cluster.preflight_paths import check_record
from llumnix.control.orders import StayCause
from llumnix.errors import UsageError
from llumnix.record import writer as module
from llumnix.record.form import REQUESTS, About, parts_of
from llumnix.record.read import read_run
from llumnix.record.units import hidden_id, unit_hashes
from llumnix.record.writer import EndedRow, RunRow, RunWriter, Tried
from llumnix.report.records import InstanceRecord, MigrationRecord, RecordT, read_rows
from llumnix.types import HIGH, InstanceState
from llumnix.workload.trace import load_trace
from recorded_run import KEY, UNIT_TOKENS, about, ended, instance, looked, step, tried, write_run

pytestmark = pytest.mark.io


def test_all_that_was_put_is_read_back_by_time(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        [
            ended("b", 5.0, list(range(200)), cached_tokens=64, queue_s=0.05, max_tokens=9, migrations=1),
            ended("a", 2.0, priority=HIGH, instances=("i0", "i1"), error="error", latency_s=None),
            tried("b", 5.5, stages=2, bytes=1 << 20, copy_ms=3.5, reason="freeness 1 against 9"),
            looked(instance(1.0, "i0"), instance(1.0, "i1", InstanceState.STARTING), steps=[step(1.0, "i0", 4, 900)]),
        ],
    )
    run = read_run(tmp_path)
    first, second = run.requests
    assert (first.arrival_s, first.priority, first.instances, first.error) == (2.0, HIGH, ("i0", "i1"), "error")
    assert (second.cached_tokens, second.queue_s, second.max_tokens, second.migrations) == (64, 0.05, 9, 1)
    assert (len(second.block_hashes), second.block_tokens) == (200 // UNIT_TOKENS, UNIT_TOKENS)
    (move,) = run.moves
    assert (move.request_id, move.tokens, move.copy_ms) == (second.id, 100, 3.5), "the same hidden id"
    assert [row.state for row in run.instances] == ["running", "starting"]
    assert run.steps == [step(1.0, "i0", 4, 900)]
    assert run.about == about()
    assert run.end_s == pytest.approx(5.14)


def test_files_are_what_bench_and_simulate_read(tmp_path: Path) -> None:
    write_run(tmp_path, [ended("a", 3.0, list(range(200))), ended("b", 4.0), tried("a"), looked(instance(1.0, "i0"))])
    first, second = load_trace(tmp_path / "requests-f0-000.jsonl").requests
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.0)
    assert (first.prompt_tokens, first.output_tokens, first.block_tokens) == (200, 3, UNIT_TOKENS)
    assert len(first.block_hashes) == 3
    assert [row.target for row in read_rows(tmp_path / "moves-f0-000.csv", MigrationRecord)] == ["i1"]
    assert [row.instance for row in read_rows(tmp_path / "instances-f0-000.csv", InstanceRecord)] == ["i0"]


def test_no_prompt_and_no_name_of_a_client_is_in_any_file(tmp_path: Path) -> None:
    """Nor can somebody who has a file find out whether a prompt is one that he thinks of."""
    prompt = [31337, 31338] * UNIT_TOKENS
    write_run(tmp_path, [ended("the-clients-own-id", tokens=prompt), tried("the-clients-own-id")])
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert b"client" not in content
        assert b"31337" not in content
        assert KEY not in content
        assert KEY.hex().encode() not in content
    (request,) = read_run(tmp_path).requests
    assert request.block_hashes == unit_hashes(prompt, UNIT_TOKENS, 0, KEY)
    assert request.block_hashes != unit_hashes(prompt, UNIT_TOKENS, 0, b"another key")
    assert hidden_id("a", KEY) != hidden_id("a", b"another key")


CLIENTS_WORDS = "the-clients-words"
THE_SERVERS_OWN = {"source", "target", "instance", "instances", "reason", "error"}
"""Texts of records that nobody outside can choose: names of instances, sentences of policies, how a stream ended."""


def test_no_text_of_a_record_is_a_clients_own(tmp_path: Path) -> None:
    """Whatever clients may call their requests and adapters; a new field is taken for theirs until it is known here."""
    rows: list[RunRow] = [
        EndedRow(_in_clients_words(ended("a").record), [], 0),
        Tried(_in_clients_words(tried("a").record)),
        looked(_in_clients_words(instance(1.0, "i0")), steps=[_in_clients_words(step(1.0, "i0", 1, 1))]),
    ]
    write_run(tmp_path, rows)
    files = list(tmp_path.iterdir())
    assert len(files) == 5, "one of each kind"
    assert not [file.name for file in files if CLIENTS_WORDS in file.read_text()]


def test_of_a_move_that_came_to_nothing_the_kind_is_kept(tmp_path: Path) -> None:
    why = {"outcome": "stayed: the adapter 'x' is not loaded here", "stayed_by": StayCause.REFUSED}
    write_run(tmp_path, [tried("a", 1.0, move_id="cmpl-a-onward"), tried("a", 2.0, move_id="cmpl-a-onward", **why)])
    moved, stayed = read_run(tmp_path).moves
    assert (moved.outcome, stayed.outcome, stayed.stayed_by) == ("moved", "stayed: refused", StayCause.REFUSED)
    assert moved.move_id == stayed.move_id == hidden_id("cmpl-a-onward", KEY), "equal where they were"


def _in_clients_words(record: RecordT) -> RecordT:
    texts = {field.name: field.type for field in msgspec.structs.fields(record)}
    said = {str: CLIENTS_WORDS, tuple[str, ...]: (CLIENTS_WORDS,)}
    return msgspec.structs.replace(
        record, **{name: said[kind] for name, kind in texts.items() if kind in said and name not in THE_SERVERS_OWN}
    )


def test_prompts_have_the_same_names_as_far_as_they_are_the_same() -> None:
    one, other = [7] * 300, [7] * 150 + [8] * 150
    names, others = (unit_hashes(each, 50, 0, KEY) for each in (one, other))
    assert len(names) == len(set(names)) == 6, "also where the content repeats"
    assert [mine == theirs for mine, theirs in zip(names, others, strict=True)] == [True] * 3 + [False] * 3
    assert not set(names) & set(unit_hashes(one, 50, 99, KEY)), "another adapter"
    assert max(names) < 2**53, "what every reader of JSON keeps"
    assert unit_hashes(one[:49], 50, 0, KEY) == ()
    assert len(unit_hashes(one * 50, 50, 0, KEY)) == 64


def test_where_nothing_is_cached_nothing_is_hashed(tmp_path: Path) -> None:
    write_run(tmp_path, [ended("a", tokens=[1] * 500)], unit_tokens=0)
    assert read_run(tmp_path).requests[0].block_hashes == ()


def test_streams_do_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    monkeypatch.setattr(RunWriter, "_append_lines", lambda self, requests: held.wait(10))
    writer = RunWriter(tmp_path, about(), UNIT_TOKENS, KEY, 1 << 20)
    for number in range(100):
        writer.put(ended(f"r{number}"))
    assert 80 <= writer.dropped <= 90
    held.set()
    writer.close()
    assert read_run(tmp_path).about.dropped == writer.dropped, "and that is said"


def test_a_full_disk_costs_rows_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert write_run(tmp_path / "file" / "run", [ended("a")]).dropped == 1


def test_a_row_that_cannot_be_written_costs_none_that_come_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With vLLM's --skip-tokenizer-init nobody looks how large the numbers in a prompt are."""
    writer = RunWriter(tmp_path, about(), UNIT_TOKENS, KEY, 1 << 20)
    writer.put(ended("a", 1.0, [2**64] * UNIT_TOKENS))
    while not writer.dropped:
        time.sleep(0.001)
    writer.put(ended("b", 2.0))
    writer.close()
    run = read_run(tmp_path)
    assert ([request.arrival_s for request in run.requests], run.about.dropped) == ([2.0], 1)
    assert "1 of its entries cannot be written" in caplog.text


def test_a_disk_that_was_full_for_a_while_leaves_no_half_row(tmp_path: Path) -> None:
    writer = write_run(tmp_path, [ended("a", 1.0)])
    with full_beyond((tmp_path / "requests-f0-000.jsonl").stat().st_size + 20), pytest.raises(OSError, match="large"):
        writer._write([ended("b", 2.0)])
    with full_beyond(20), pytest.raises(OSError, match="large"):
        writer._write([tried("b", 2.0)])
    writer._write([ended("c", 3.0), tried("c", 3.0), tried("c", 4.0)])
    run = read_run(tmp_path)
    assert [request.arrival_s for request in run.requests] == [1.0, 3.0]
    assert [move.at_s for move in run.moves] == [3.0, 4.0]
    assert (tmp_path / "moves-f0-000.csv").read_text().startswith("at_s,request_id,")


def test_a_row_that_is_written_just_now_or_was_when_a_process_was_killed_is_none(tmp_path: Path) -> None:
    """Wherever it ends: its last number may be whole, or have lost digits."""
    write_run(tmp_path, [ended("a"), tried("a"), looked(instance(1.0, "i0"), steps=[step(1.0, "i0", 40, 90)])])
    whole = read_run(tmp_path)
    for file in tmp_path.glob("*-f0-000.*"):
        content = file.read_bytes()
        last = content.splitlines(keepends=True)[-1]
        for end in range(len(last)):
            file.write_bytes(content + last[:end])
            assert read_run(tmp_path) == whole, (file.name, end)
        file.write_bytes(content)


def test_a_run_whose_folder_was_taken_away_goes_on_and_can_be_read(tmp_path: Path) -> None:
    writer = write_run(tmp_path / "run", [ended("a", 1.0), tried("a")])
    shutil.rmtree(tmp_path / "run")
    writer._write([ended("b", 2.0), tried("b", 3.0)])
    run = read_run(tmp_path / "run")
    assert ([request.arrival_s for request in run.requests], [move.at_s for move in run.moves]) == ([2.0], [3.0])


def test_a_front_end_that_is_restarted_counts_on(tmp_path: Path) -> None:
    """What was lost before is lost for all who read the run."""
    (tmp_path / "about-f0.json").write_bytes(msgspec.json.encode(about(dropped=3, removed=2)))
    (tmp_path / "about-f1.json").write_text("{")
    again = write_run(tmp_path, [ended("a", 1.0), ended("bad", 1.0, [2**64] * UNIT_TOKENS)])
    again._write([ended("b", 2.0)])
    told = msgspec.json.decode((tmp_path / "about-f0.json").read_bytes(), type=About)
    assert (told.dropped, told.removed) == (3 + again.dropped, 2)
    write_run(tmp_path, [ended("a", 1.0)], of=about(front_end=1))
    assert read_run(tmp_path).about.dropped == 3 + again.dropped, "one that is damaged says nothing"


def test_files_go_on_in_others_after_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = write_run(tmp_path, [])
    for number in range(3):
        writer._write([ended(f"r{number}", number)])
    assert len(parts_of(tmp_path, REQUESTS)) == 1
    monkeypatch.setattr(module, "LONGEST_PART_S", 0.0)
    writer._write([ended("r3", 3.0)])
    assert [file.name for file in parts_of(tmp_path, REQUESTS)] == ["requests-f0-000.jsonl", "requests-f0-001.jsonl"]
    assert len(read_run(tmp_path).requests) == 4


def test_a_run_of_weeks_has_more_than_a_thousand_files(tmp_path: Path) -> None:
    for number in (998, 999):
        (tmp_path / f"requests-f0-{number}.jsonl").touch()
    for arrival_s in (1.0, 2.0):
        write_run(tmp_path, [ended("a", arrival_s)])
    numbers = [file.stem.rpartition("-")[2] for file in parts_of(tmp_path, REQUESTS)]
    assert numbers == ["998", "999", "1000", "1001"]


def test_a_front_end_that_is_restarted_leaves_alone_what_its_predecessor_may_not_have_ended(tmp_path: Path) -> None:
    write_run(tmp_path, [ended("a", 1.0)])
    torn = tmp_path / "requests-f0-000.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"id":"r1","arri')
    write_run(tmp_path, [ended("b", 2.0)], of=about(since_s=60.0))
    assert [request.arrival_s for request in read_run(tmp_path).requests] == [1.0, 2.0]


def test_what_is_oldest_makes_room(tmp_path: Path) -> None:
    most_bytes = 64 << 10
    writer = write_run(tmp_path, [], mb=most_bytes / 2**20)
    for number in range(2000):
        writer._write([ended(f"r{number}", float(number), [number] * 200)])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= most_bytes
    run = read_run(tmp_path)
    assert 50 < len(run.requests) < 1000
    assert run.requests[-1].arrival_s == 1999.0
    assert run.about.removed > 0


def test_front_ends_write_beside_each_other(tmp_path: Path) -> None:
    for front_end in (0, 1):
        made = about(front_end=front_end, front_ends=2, dropped=0)
        write_run(tmp_path, [ended(f"r{front_end}", 2.0 - front_end, [5] * 80)], of=made)
    first, second = read_run(tmp_path).requests
    assert (first.arrival_s, second.arrival_s) == (1.0, 2.0)
    assert first.block_hashes == second.block_hashes, "and know each other's prompts"


def test_the_newest_run_of_a_folder_is_read(tmp_path: Path) -> None:
    for name, arrival_s in (("2026-11-26T21-00-00", 1.0), ("2026-11-27T09-00-00", 2.0)):
        write_run(tmp_path / name, [ended("a", arrival_s)])
    assert read_run(tmp_path).requests[0].arrival_s == 2.0
    assert read_run(tmp_path / "2026-11-26T21-00-00").requests[0].arrival_s == 1.0


def test_what_is_no_recorded_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def refused(sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            read_run(tmp_path)

    with pytest.raises(UsageError, match=r"There is no recorded run .*/gone\."):
        read_run(tmp_path / "gone")
    refused("is no recorded run, and has none in it")
    (tmp_path / "about-f0.json").write_text("{}")
    refused(r"about-f0.json does not tell of a recorded run: .*\.$")
    write_run(tmp_path, [ended("a"), looked(instance(1.0, "i0"))])
    told = (tmp_path / "about-f0.json").read_text()
    (tmp_path / "about-f0.json").write_text(told.replace('"version": 1', '"version": 2'))
    refused("is of version 2 of recorded runs, and this Llumnix reads 1")
    (tmp_path / "about-f0.json").write_text(told.replace('"pairing_interval_s": 0.1', '"pairing_interval_s": -1'))
    refused("does not tell of a recorded run: .*pairing-interval-s")
    (tmp_path / "about-f0.json").write_text(told.replace("tiny", "tin\xff"), encoding="latin-1")
    refused(r"about-f0.json does not tell of a recorded run: .*\.$")
    (tmp_path / "about-f0.json").write_text(told)
    (tmp_path / "about-f1.json").write_text(told.replace("1000.0", "2000.0"))
    refused("has files of several runs in it")
    (tmp_path / "about-f1.json").unlink()
    requests = tmp_path / "requests-f0-000.jsonl"
    requests.write_bytes(gzip.compress(requests.read_bytes()) + b"\n")
    refused(r"requests-f0-000.jsonl:1: not an entry of a recorded run")
    requests.write_bytes(msgspec.json.encode({"id": "r", "arrival_s": 0}) + b"\n")
    refused(r"requests-f0-000.jsonl:1: not an entry of a recorded run: .*prompt_tokens")
    requests.unlink()
    (tmp_path / "instances-f0-000.csv").write_text("at_s,instance\nsoon,i0\n")
    refused(r"instances-f0-000.csv:2: not a row")


def test_a_server_that_could_not_record_does_not_start(tmp_path: Path) -> None:
    check_record("--record", "")
    check_record("--record", str(tmp_path / "made" / "later"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--record .*/file/x cannot be written: .*file is no folder"):
        check_record("--record", str(tmp_path / "file" / "x"))
