"""What a simulated run notes: as a server would, each thing once, with times that agree with its records."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from llumnix.config import ClusterConfig, PolicyConfig, ScalingConfig
from llumnix.control.scheduler_events import DrainOutcome
from llumnix.journal.entries import EndNoted, FirstTokenNoted, JournalEntry, MoveNoted
from llumnix.journal.story import stories_in
from llumnix.report.records import MOVED
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.faults import parse_fault
from llumnix.sim.outcome import Outcome
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import PlannedDrain, RunSetup
from llumnix.workload.workload import load_workload

A10 = load_profile("a10-llama-7b")
CROWDED = "M-M?rate=5&requests=500&seed=1"


def run(**setup: Any) -> tuple[Outcome, list[JournalEntry]]:
    options: dict[str, Any] = {"instances": 4, "profile": A10} | setup
    entries: list[JournalEntry] = []
    requests = sim_requests(load_workload(CROWDED))
    return simulate(requests, RunSetup(**options), listener=entries.append), entries


@pytest.fixture(scope="module")
def eventful() -> tuple[Outcome, list[JournalEntry]]:
    """Moves, preemptions, a crash and a drain."""
    return run(faults=(parse_fault("crash@60:1"),), drains=(PlannedDrain(90.0, 2),))


def by_kind(entries: list[JournalEntry]) -> Counter[str]:
    return Counter(entry.kind for entry in entries)


def test_the_run_goes_the_same_whether_or_not_somebody_listens() -> None:
    requests = sim_requests(load_workload(CROWDED))
    unheard = simulate(requests, RunSetup(instances=4, profile=A10))
    assert run()[0].records() == unheard.records()


def test_each_thing_that_happens_to_a_request_has_exactly_one_entry(
    eventful: tuple[Outcome, list[JournalEntry]],
) -> None:
    outcome, entries = eventful
    kinds, requests = by_kind(entries), outcome.requests
    moved = sum(row.outcome == MOVED for row in outcome.migrations)
    assert kinds["dispatch"] == kinds["first_token"] == kinds["ended"] == len(requests)
    assert kinds["moved"] == moved == sum(request.migrations for request in requests)
    assert kinds["stayed"] == len(outcome.migrations) - moved
    assert kinds["replayed"] == sum(request.replays for request in requests)
    assert min(kinds[kind] for kind in ("moved", "stayed", "replayed", "preempted")) > 0, "of all there is some"
    assert {(entry.request, entry.what.move_id) for entry in entries if isinstance(entry.what, MoveNoted)} == {
        (row.request_id, row.move_id) for row in outcome.migrations if row.outcome == MOVED
    }


def test_the_times_of_every_story_add_up_to_what_its_client_waited(
    eventful: tuple[Outcome, list[JournalEntry]],
) -> None:
    outcome, entries = eventful
    records = {record.id: record for record in outcome.records().requests}
    for request, record in records.items():
        (story,) = stories_in(entries, request)
        assert story.spent.total_s == pytest.approx(story.latency_s)
        assert story.latency_s == pytest.approx(record.latency_s, abs=0.005)
        assert story.arrived_at_s == pytest.approx(record.arrival_s, abs=0.005)
        tokens = [entry.what for entry in story.entries if isinstance(entry.what, FirstTokenNoted)]
        assert [token.ttft_s for token in tokens] == [pytest.approx(record.ttft_s, abs=0.005)]


def test_what_preemptions_and_moves_cost_is_what_the_records_say(
    eventful: tuple[Outcome, list[JournalEntry]],
) -> None:
    outcome, entries = eventful
    spent = {entry.request: entry.what.spent for entry in entries if isinstance(entry.what, EndNoted)}
    undisturbed = [request for request in outcome.requests if not request.replays]
    for request in undisturbed:
        # The records leave out the step that it would have taken anyway.
        assert spent[request.client_id].preempted_s >= request.lost_s - 1e-6
        assert (spent[request.client_id].preempted_s > 0) == (request.lost_s > 0)
    felt_s = {move.request_id: 0.0 for move in outcome.migrations}
    for move in outcome.migrations:
        felt_s[move.request_id] += (move.downtime_ms or 0.0) / 1e3
    calm = [request.client_id for request in undisturbed if not request.preemptions and request.migrations]
    assert len(calm) > 5
    for name in calm:
        assert spent[name].moving_s == pytest.approx(felt_s[name], abs=1e-6)


def test_the_cluster_is_told_of_as_well() -> None:
    scaling = ScalingConfig(scale_window_s=1.0, min_instances=1, max_instances=6)
    outcome, entries = run(instances=2, scaling=scaling, cluster=ClusterConfig(drain_timeout_s=5.0))
    of_cluster = [entry for entry in entries if entry.by == "s"]
    kinds = by_kind(of_cluster)
    assert kinds["scale"] > 0
    gone = {entry.instance for entry in of_cluster if entry.kind == "instance" and not entry.what.serves}  # type: ignore[union-attr]
    assert gone == {life.instance for life in outcome.lives if life.ended_s is not None}
    ends = [entry for entry in of_cluster if entry.kind == "drain" and entry.what.report is not None]  # type: ignore[union-attr]
    assert len(ends) == sum(drain.outcome is not DrainOutcome.DRAINING for drain in outcome.drains)


def test_nothing_moves_and_nothing_is_said_of_rounds_without_migration() -> None:
    kinds = by_kind(run(policy=PolicyConfig(migration=False))[1])
    assert (kinds["moved"], kinds["round"]) == (0, 0)


def test_first_token_says_what_the_cache_had() -> None:
    prompts = [SimRequest(k, 30.0 * k, 3 * 512 + 40, 20, hashes=(1, 2, 3 + k)) for k in range(2)]
    entries: list[JournalEntry] = []
    setup = RunSetup(instances=1, profile=A10.with_scheduler(kind="vllm-1"), unit_tokens=512)
    simulate(prompts, setup, listener=entries.append)
    first_tokens = [entry.what for entry in entries if isinstance(entry.what, FirstTokenNoted)]
    assert [token.cached_tokens for token in first_tokens] == [0, 1024]
