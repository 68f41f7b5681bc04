"""What `benchmarks/routers.py` asks and concludes; its servers are started by nobody here."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import routers
from _routers import kept, parties, tools
from _routers.faults import Fault
from _routers.loads import LOADS, make
from _routers.outcome import Run, Setting, Targets, compared, figures_of
from frame.verdict import ROOT, at_most

from llumnix.report.records import RequestRecord

TARGETS = Targets(ttft_s=1.0, tpot_s=0.05)
SETTING = Setting(None, tries=1, engines=4, requests=150, step_ms=20.0, token_ms=0.2, targets=TARGETS)


def record(number: int, **fields: object) -> RequestRecord:
    usual = {"ttft_s": 0.5, "tpot_s": 0.03, "latency_s": 2.0, "largest_gap_s": 0.1}
    row = {"id": f"r{number}", "arrival_s": float(number), "prompt_tokens": 1, "output_tokens": 2}
    return RequestRecord(**row | usual | fields)  # type: ignore[arg-type]


def test_goodput_counts_what_met_both_targets_over_the_time_of_arrivals() -> None:
    rows = [
        record(0),
        record(1, ttft_s=1.1),
        record(2, tpot_s=0.06),
        record(3, error="lost", latency_s=None),
        record(4),
    ]
    figures = figures_of(rows, TARGETS, cpu_s=10.0, preemptions=3)
    assert figures["goodput"] == 2 / 4
    assert (figures["failed"], figures["CPU s per request"], figures["preemptions"]) == (1, 2.0, 3)
    assert figures["TTFT P99"] == pytest.approx(1.1, abs=0.02)


def test_who_had_to_ask_again_failed_and_its_times_count() -> None:
    rows = [record(0), record(1, largest_gap_s=5.0)]
    figures = figures_of(rows, TARGETS, cpu_s=0.0, preemptions=0, asked_again={"r1"})
    assert figures["failed"] == 1
    assert figures["gap P99"] > 4
    assert figures["unbroken gap P99"] == pytest.approx(0.1)


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_where_an_engine_goes_away_nobody_may_fail_and_pauses_have_a_goal(fault: Fault) -> None:
    usual = figures_of([record(0), record(1)], TARGETS, cpu_s=1.0, preemptions=0)
    runs = [
        Run("near, bursts", 1, name, usual | {"failed": failed}, SETTING)
        for name, failed in (("a", 3), (parties.OURS, 1))
    ]
    told = {figure.name: figure for figure in compared("near", LOADS["near, bursts"], runs, fault)}
    assert told["near: gap P99, llumnix / a"].goal is not None
    failed = told["near: failed, llumnix"]
    assert (failed.measured, failed.goal) == (1, at_most(0))


def test_slower_engines_are_asked_less() -> None:
    usual, slow = (
        make(LOADS["near, bursts"], engines=4, requests=50, seed=1, contents=0, step_ms=step_ms).requests
        for step_ms in (20.0, 60.0)
    )
    assert slow[-1].arrival_s == pytest.approx(3 * usual[-1].arrival_s)


def test_where_every_request_failed_times_are_endless() -> None:
    figures = figures_of([record(n, error="lost") for n in range(2)], TARGETS, cpu_s=0.0, preemptions=0)
    assert (figures["TTFT P99"], figures["failed"], figures["goodput"]) == (math.inf, 2, 0)


def test_each_figure_is_compared_with_whoever_is_best_in_it() -> None:
    values = {
        parties.OURS: {"TTFT mean": 1.0, "TTFT P99": 4.0, "goodput": 3.0},
        "a": {"TTFT mean": 2.0, "TTFT P99": 16.0, "goodput": 1.0},
        "b": {"TTFT mean": 4.0, "TTFT P99": 8.0, "goodput": 2.0},
    }
    usual = figures_of([record(0), record(1)], TARGETS, cpu_s=1.0, preemptions=0)
    runs = [
        Run("near, bursts", seed, name, usual | {key: value * seed for key, value in mine.items()}, SETTING)
        for name, mine in values.items()
        for seed in (1, 2)
    ]
    told = {figure.name: figure for figure in compared("near", LOADS["near, bursts"], runs)}
    assert told["near: TTFT mean, llumnix / a"].measured == pytest.approx(0.5)
    assert told["near: TTFT P99, llumnix / b"].measured == pytest.approx(0.5)
    assert told["near: goodput, llumnix / b"].measured == pytest.approx(1.5)
    assert told["near: TTFT P99, llumnix / b"].goal is not None
    assert compared("near", LOADS["near, bursts"], [run for run in runs if run.party == "a"]) == []


def test_what_is_refused_by_classes_has_goals_of_its_own_and_is_nobodys_rival() -> None:
    usual = figures_of([record(0), record(1)], TARGETS, cpu_s=1.0, preemptions=0)
    goodputs = {parties.OURS: 1.0, parties.WITH_CLASSES: 6.0, "a": 2.0}
    runs = [Run("twice, bursts", 1, name, usual | {"goodput": value}, SETTING) for name, value in goodputs.items()]
    told = {figure.name: figure for figure in compared("twice", LOADS["twice, bursts"], runs)}
    plain, with_classes = (told[f"twice: goodput, {name} / a"] for name in (parties.OURS, parties.WITH_CLASSES))
    assert plain.measured == pytest.approx(0.5)
    assert plain.goal is None
    assert with_classes.measured == pytest.approx(3)
    assert with_classes.goal is not None


@pytest.mark.parametrize("name", LOADS)
def test_loads_are_the_same_for_everybody_but_not_what_their_prompts_say(name: str) -> None:
    first, second = (make(LOADS[name], engines=8, requests=50, seed=1, contents=contents) for contents in (3, 4))
    assert (first.requests, first.seed, second.seed) == (second.requests, 3, 4)
    rate = len(first.requests) / (first.requests[-1].arrival_s - first.requests[0].arrival_s)
    assert LOADS[name].rate < rate < 5 * LOADS[name].rate


def test_prompts_of_shared_contexts_begin_with_a_few_of_them_and_are_longer_than_these() -> None:
    requests = make(LOADS["shared contexts"], engines=4, requests=200, seed=1, contents=0).requests
    contexts = {request.block_hashes for request in requests}
    assert 8 < len(contexts) <= 16
    assert all(request.prompt_tokens > len(request.block_hashes) * request.block_tokens for request in requests)


def test_routers_are_pinned() -> None:
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", tools.LOCK.read_text(), re.MULTILINE))
    assert set(tools.COMMANDS) <= set(pinned)
    assert all(ROOT in (tools.HOME / name).parents for name in tools.COMMANDS)


def run_of(setting: Setting | None, **figures: float) -> Run:
    usual = figures_of([record(0), record(1)], TARGETS, cpu_s=1.0, preemptions=0)
    return Run("near, bursts", 1, parties.OURS, usual | figures, setting)


def told(monkeypatch: pytest.MonkeyPatch, *words: str) -> argparse.Namespace:
    monkeypatch.setattr("sys.argv", ["routers.py", *words])
    return routers._parse()


def test_kept_runs_come_back_and_so_do_those_in_which_everything_failed(tmp_path: Path) -> None:
    runs = [run_of(SETTING), run_of(msgspec.structs.replace(SETTING, fault="kill"), **{"TTFT P99": math.inf})]
    kept.write(tmp_path / "runs.json", runs)
    assert kept.read(tmp_path / "runs.json") == runs


@pytest.mark.parametrize(
    "other",
    [
        *({"fault": "kill"}, {"tries": 3}, {"engines": 8}, {"requests": 300}, {"step_ms": 60.0}, {"token_ms": 0.6}),
        {"targets": Targets(ttft_s=1.0, tpot_s=0.06)},
    ],
)
def test_what_was_measured_of_other_sizes_is_measured_anew(
    other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--loads", "near, bursts", "--parties", parties.OURS, "--seeds", "1", "--records", str(tmp_path / "runs"))
    setting = told(monkeypatch, *words).setting
    kept.write(tmp_path / "runs", [run_of(msgspec.structs.replace(setting, **other))])
    assert routers._missing(told(monkeypatch, *words)) == {("near, bursts", 1, parties.OURS)}
    kept.write(tmp_path / "runs", [run_of(setting)])
    assert not routers._missing(told(monkeypatch, *words))


def test_a_file_from_before_runs_said_their_sizes_is_read_and_nothing_of_it_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[str, Any] = {
        "load": "near, bursts",
        "fault": None,
        "seed": 1,
        "party": parties.OURS,
        "figures": {},
        "tries": 1,
    }
    (tmp_path / "runs").write_bytes(msgspec.json.encode([before]))
    arguments = told(monkeypatch, "--records", str(tmp_path / "runs"))
    assert [run.setting for run in arguments.done] == [None]
    assert ("near, bursts", 1, parties.OURS) in routers._missing(arguments)


@pytest.mark.parametrize(
    "words",
    [
        *(("--seeds", "0"), ("--engines", "0"), ("--requests", "1"), ("--tries", "x"), ("--ttft-target-s", "nan")),
        *(("--step-ms", "0.0"), ("--token-ms", "-1"), ("--loads", "none"), ("--parties", "nobody"), ("--fault", "x")),
        *(("--records", "/no/such/runs"), ("--records", __file__)),
    ],
)
def test_what_nobody_can_be_asked_is_refused_before_a_server_starts(
    words: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        told(monkeypatch, *words)
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert words[0] in said or words[1] in said
