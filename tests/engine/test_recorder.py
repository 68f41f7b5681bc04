"""What a front end writes down of its streams and of the instances."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import test_long_run_of_streams as long_run
import torch
from engine_requests import PICTURE
from test_streams import MOST_MEDIA_BYTES, A, B, _other, _token
from test_streams_stories import PREEMPTED, SCHEDULED, events, move
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import FinishReason
from vllm.v1.metrics.stats import PrefillStats

from llumnix.config import ClusterConfig
from llumnix.engine.vllm.front_end import recorder as recorder_module
from llumnix.engine.vllm.front_end import stream_log, streams, telling
from llumnix.engine.vllm.front_end.recorded_rows import request_row
from llumnix.engine.vllm.front_end.recorder import Recorder
from llumnix.engine.vllm.front_end.session import Session
from llumnix.engine.vllm.front_end.stream_log import StreamLog
from llumnix.journal.journal import Journal
from llumnix.journal.story import FIRST_KEPT, LAST_KEPT
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.record.form import RecordedRequest
from llumnix.record.read import RecordedRun, read_run
from llumnix.types import InstanceId, InstanceState, Priority
from llumnix.wire.news import InstanceGone
from recorded_run import about


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(streams, "monotonic", lambda: now[0])
    return now


class Noting(long_run.Arbiter):
    """Keeps the row of each stream that ended."""

    def __init__(self, *instances: InstanceId) -> None:
        self.rows: list[RecordedRequest] = []
        super().__init__(*instances)

    def ended(self, session: Session) -> None:
        super().ended(session)
        self.rows.append(request_row(session, session.story.arrived_s))


def test_row_of_a_request_that_was_preempted_and_moved(clock: list[float]) -> None:
    front = Noting(A, B)
    sampling = SamplingParams(temperature=0.0, max_tokens=20)
    first = front.open("r", arrival_time=time.time(), sampling_params=sampling, priority=-1)
    said = [
        (103.0, _token("r", 7, events=events((SCHEDULED, 102.0)), prefill_stats=PrefillStats(num_cached_tokens=2))),
        (108.0, _token("r", 8, events=events((PREEMPTED, 104.0), (SCHEDULED, 106.0)))),
        (109.0, _token("r", 9)),
    ]
    for now, output in said:
        clock[0] = now
        front.streams.sort_out(first, [output])
    move(front, first, _other(first), 3)
    clock[0] = 110.0
    front.streams.sort_out(_other(first), [_token("r", 10, finish_reason=FinishReason.STOP)])
    (row,) = front.rows
    assert row.arrival_s == pytest.approx(100.0, abs=0.05)
    assert (row.prompt_tokens, row.output_tokens, row.max_tokens, row.priority) == (3, 4, 20, Priority(-1))
    assert row.ttft_s == pytest.approx(3.0, abs=0.05)
    assert row.queue_s == pytest.approx(2.0, abs=0.05)
    assert row.tpot_s == pytest.approx(7 / 3)
    assert row.largest_gap_s == 5.0
    assert row.latency_s == pytest.approx(10.0, abs=0.05)
    assert (row.preemptions, row.migrations, row.cached_tokens) == (1, 1, 2)
    assert (row.instances, row.error) == ((first, _other(first)), "")


def test_row_of_a_request_of_which_more_happened_than_its_story_keeps(clock: list[float]) -> None:
    front = Noting(A, B)
    first, times = front.open("r"), FIRST_KEPT + LAST_KEPT
    front.streams.sort_out(first, [_token("r", 7, prefill_stats=PrefillStats(num_cached_tokens=2))])

    def preempt(instance: InstanceId) -> None:
        for _ in range(times):
            clock[0] += 3.0
            thrown_out = events((PREEMPTED, clock[0] - 2.0), (SCHEDULED, clock[0] - 1.0))
            front.streams.sort_out(instance, [_token("r", 8, events=thrown_out)])

    preempt(first)
    move(front, first, _other(first), 1 + times)
    preempt(_other(first))
    front.streams.sort_out(_other(first), [_token("r", 9, finish_reason=FinishReason.STOP)])
    (row,) = front.rows
    assert (row.preemptions, row.migrations, row.cached_tokens) == (2 * times, 1, 2)
    assert row.instances == (first, _other(first))


def test_rows_of_requests_that_failed_were_left_or_said_nothing(clock: list[float]) -> None:
    front = Noting(A)
    for name in ("failed", "left", "silent"):
        front.open(name)
        if name != "silent":
            front.streams.sort_out(A, [_token(name, 7)])
    front.streams.sort_out(A, [_token("failed", 8, finish_reason=FinishReason.ERROR)])
    for name in ("left", "silent"):
        front.streams.abort(name)
    failed, left, silent = front.rows
    assert (failed.error, failed.output_tokens, failed.latency_s) == ("error", 2, None)
    assert (left.error, left.output_tokens, left.tpot_s) == ("", 1, None)
    assert (silent.output_tokens, silent.ttft_s, silent.queue_s) == (0, None, None)


class Desk:
    """As much of a front end as the recorder needs."""

    def __init__(self, folder: Path, index: int = 0) -> None:
        self.spec = SimpleNamespace(
            index=index,
            cluster=ClusterConfig(record=str(folder / "runs")),
            book=SimpleNamespace(run_dir=str(folder), front_ends=2),
            secret=b"secret",
        )
        self.members = SimpleNamespace(by_id={}, courted={})
        self.strangers = SimpleNamespace(starting={}, gone=[])

    def report(self, name: str, cost: StepCost | None = None, **load: Any) -> None:
        usual: dict[str, Any] = {"id": InstanceId(name), "at": 0.0, "seq": 1, "total_blocks": 96, "free_blocks": 9}
        snapshot = InstanceSnapshot(**usual | load, step_cost=cost)
        self.members.by_id[InstanceId(name)] = SimpleNamespace(snapshot=snapshot)


COST = StepCost(fixed_ms=20.0, prefill_token_us=200.0, request_us=150.0, context_token_us=0.5)


def recorder(desk: Desk) -> Recorder:
    of = about(began_at_s=0.0, front_ends=2, front_end=desk.spec.index)
    return Recorder(desk.spec, desk.members, desk.strangers, of)  # type: ignore[arg-type]


async def test_front_ends_of_a_server_write_one_run_and_begin_another_when_it_is_switched_on_again(
    tmp_path: Path,
) -> None:
    first, second = (recorder(Desk(tmp_path, index)) for index in (0, 1))
    first.begin()
    second.begin()
    (folder,) = {first._in_force.folder, second._in_force.folder}
    assert first.switch(True) == folder, "it is on"
    assert first.switch(False) == ""
    second.follow()
    assert (first._writer, second._writer) == (None, None)
    restarted = recorder(Desk(tmp_path, 1))
    restarted.begin()
    assert restarted._writer is None, "it stays off"
    await asyncio.sleep(0.002)  # a run is named by its millisecond
    again = second.switch(True)
    first.follow()
    assert again != folder
    assert {first._in_force.folder, second._in_force.folder} == {again}
    for each in (first, second, restarted):
        each.close()


async def test_older_runs_make_room_for_a_new_one_of_the_size_that_it_may_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, int, Path]] = []
    monkeypatch.setattr(recorder_module, "make_room", lambda *of: asked.append(of))
    first, second = (recorder(Desk(tmp_path, index)) for index in (0, 1))
    for each in (first, second):
        each.begin()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        each.close()
    assert asked == [(tmp_path / "runs", (4096 - 512) << 20, first.folder)], "by one front end for all"


async def test_restarted_front_end_goes_on_with_the_run_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = recorder(Desk(tmp_path, 0))
    first.begin()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    restarted = recorder(Desk(tmp_path, 0))
    restarted.begin()
    assert restarted._in_force == first._in_force
    for each in (first, restarted):
        each.close()


async def test_instances_are_looked_at_with_what_their_steps_cost(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.report("i0", COST, decoding=4, context_tokens=900, prefix_chunk_tokens=128, running=5)
    desk.report("i1")
    desk.strangers.starting["i2"] = None
    made = recorder(desk)
    made.begin()
    assert made._in_force.unit_tokens == 128
    first = made._look(1.0)
    assert [(row.instance, row.state) for row in first.instances] == [
        ("i0", InstanceState.RUNNING),
        ("i1", InstanceState.RUNNING),
        ("i2", InstanceState.STARTING),
    ]
    (step,) = first.steps
    assert (step.instance, step.decoding, step.context_tokens) == ("i0", 4, 900)
    assert step.decode_step_ms == pytest.approx(20.0 + 4 * 0.15 + 900 * 0.0005)
    assert made._look(2.0).steps == [], "nothing new"
    del desk.members.by_id[InstanceId("i1")]
    gone = InstanceGone(instance=InstanceId("i1"), index=1, why="killed", expected=False)
    desk.strangers.gone.append((gone, InstanceState.LOST))
    assert [row.state for row in made._look(3.0).instances if row.instance == "i1"] == [InstanceState.LOST]
    assert [row.instance for row in made._look(4.0).instances] == ["i0", "i2"]
    made.close()


class Recorded(long_run.Arbiter):
    """Its streams and moves are written down."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream_log, "Metrics", SimpleNamespace)
        self._folder = folder
        self._log = StreamLog(Journal("f0"))
        self._log.metrics.migration = lambda *_: None  # type: ignore[method-assign]
        self.recorder = self._log.recorder = recorder(Desk(folder))
        self.recorder.begin()
        super().__init__(A, B)
        self._log.stories = self.stories

    def ended(self, session: Session) -> None:
        self._log.ended(session)

    def moved(self, session: Session, notice: Any, downtime_s: float | None, ago_s: float) -> None:
        self._log.moved(session, notice, downtime_s, ago_s)

    def run(self) -> RecordedRun:
        self.recorder.close()
        return read_run(self._folder / "runs")


async def test_streams_and_moves_of_a_front_end_come_into_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = Recorded(tmp_path, monkeypatch)
    first = front.open("r", arrival_time=time.time(), prompt_token_ids=[5] * 1100)
    front.streams.sort_out(first, [_token("r", 7)])
    move(front, first, _other(first), 1)
    front.streams.sort_out(_other(first), [_token("r", 8, finish_reason=FinishReason.LENGTH)])
    run = front.run()
    (request,), (moved,) = run.requests, run.moves
    assert (request.prompt_tokens, request.output_tokens, len(request.block_hashes)) == (1100, 2, 2)
    assert -1.0 < request.arrival_s < 5.0
    assert (moved.request_id, moved.tokens) == (request.id, 1102)
    assert -1.0 < moved.at_s < 5.0


async def test_move_of_a_request_whose_embeddings_were_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = Recorded(tmp_path, monkeypatch)
    vectors = torch.zeros(7, MOST_MEDIA_BYTES)
    first = front.open("r", prompt_token_ids=None, prompt_embeds=vectors)
    front.streams.sort_out(first, [_token("r", 7)])
    move(front, first, _other(first), 1)
    (delivered,) = front.streams.sort_out(_other(first), [_token("r", 8, finish_reason=FinishReason.LENGTH)])
    assert delivered.new_token_ids == [8]
    assert [moved.tokens for moved in front.run().moves] == [9]


TWO_UNITS = [5] * 1100


@pytest.mark.parametrize(
    ("units", "fields"),
    [
        (2, {}),
        (0, {"mm_features": [PICTURE]}),
        (0, {"prompt_embeds": torch.zeros(len(TWO_UNITS), 1), "kept": True}),
        (0, {"prompt_embeds": torch.zeros(len(TWO_UNITS), 1)}),
        (0, {"resumable": True}),
        (0, {"sampling_params": SamplingParams(prompt_logprobs=1)}),
    ],
    ids=["tokens", "a picture", "embedded parts", "embedded parts, not kept", "more to come", "each token asked about"],
)
async def test_only_a_beginning_that_the_cache_could_give_is_named(
    units: int, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere equal tokens need not be equal prompts, or are computed all the same."""
    fields = dict(fields)
    if fields.pop("kept", False):
        monkeypatch.setattr("test_streams.MOST_MEDIA_BYTES", 1 << 20)
    front = Recorded(tmp_path, monkeypatch)
    first = front.open("r", prompt_token_ids=TWO_UNITS, **fields)
    front.streams.sort_out(first, [_token("r", 7)])
    front.streams.abort("r")
    (request,) = front.run().requests
    assert len(request.block_hashes) == units


async def test_a_step_of_the_wall_clock_moves_nothing_in_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = Recorded(tmp_path, monkeypatch)
    stepped = time.time
    for module in (recorder_module, stream_log, telling):
        monkeypatch.setattr(module, "time", lambda: stepped() + 3600.0)
    first = front.open("r", arrival_time=stepped() + 3600.0)
    front.streams.sort_out(first, [_token("r", 7)])
    move(front, first, _other(first), 1)
    front.streams.sort_out(_other(first), [_token("r", 8, finish_reason=FinishReason.LENGTH)])
    restarted = recorder(Desk(tmp_path, 1))
    restarted.begin()
    run = front.run()
    restarted.close()
    (request,), (moved,) = run.requests, run.moves
    assert -1.0 < request.arrival_s < 60.0
    assert -1.0 < moved.at_s < 60.0
    assert {file.name: 0.0 <= json.loads(file.read_text())["since_s"] < 60.0 for file in _abouts(tmp_path)} == {
        "about-f0.json": True,
        "about-f1.json": True,
    }


def _abouts(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*/about-*.json"))
