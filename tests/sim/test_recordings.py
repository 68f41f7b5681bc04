"""What a cluster recorded gives the same commands when the machines hear it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from full_disk import full_beyond
from llumnix.control.commands import Notify
from llumnix.control.events import MoveOrdered
from llumnix.control.messages import Moved
from llumnix.control.replay import SchedulerEntry
from llumnix.control.scheduler_events import MigrationEnded, MoveRequest
from llumnix.control.transcript import Entry
from llumnix.errors import UsageError
from llumnix.recording import RECORD, differences
from llumnix.report.records import MOVED, MigrationRecord
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.faults import parse_fault
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import load_workload


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of a crowded run in which instances die, stall and talk slowly."""
    folder = tmp_path_factory.mktemp("recordings")
    faults = tuple(map(parse_fault, ("crash@40", "crash@120", "stall@60+4", "slow-link@80+30:200")))
    setup = RunSetup(instances=4, profile=load_profile("a10-llama-7b"), faults=faults, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RECORD, str(folder))
        simulate(sim_requests(load_workload("L-L?rate=0.8&requests=150&seed=1")), setup)
    return sorted(folder.iterdir())


def test_every_recorded_machine_answers_as_it_did(recordings: list[Path]) -> None:
    names = {path.stem for path in recordings}
    assert {"scheduler", "front-end"} < names
    assert len(names) >= 4
    assert sum(path.read_bytes().count(b"\n") for path in recordings) > 500
    for path in recordings:
        assert differences(path) == [], path.name


def test_full_disk_ends_a_recording_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    setup = RunSetup(instances=2, profile=load_profile("a10-llama-7b"), seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RECORD, str(tmp_path))
        with full_beyond(20_000):
            outcome = simulate(sim_requests(load_workload("S-S?rate=8&requests=60&seed=1")), setup)
    assert len(outcome.requests) == 60
    told = [record.getMessage() for record in caplog.records if "ends here" in record.getMessage()]
    assert f"{tmp_path}/scheduler.jsonl ends here: [Errno 27] File too large" in told
    assert len(told) == len(set(told)), "once of each"
    for path in tmp_path.iterdir():
        assert differences(path) == [], path.name
        assert path.stat().st_mode & 0o777 == 0o600, "ids of clients are in it"


def test_folder_that_cannot_be_made_ends_a_recording_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    setup = RunSetup(instances=2, profile=load_profile("a10-llama-7b"), seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RECORD, str(tmp_path / "file"))
        outcome = simulate(sim_requests(load_workload("S-S?rate=8&requests=5&seed=1")), setup)
    assert len(outcome.requests) == 5
    assert "scheduler.jsonl ends here: [Errno 20] Not a directory" in caplog.text


def test_an_order_is_followed_by_its_id_from_the_decision_to_the_record(tmp_path: Path) -> None:
    setup = RunSetup(instances=4, profile=load_profile("a10-llama-7b"), seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RECORD, str(tmp_path))
        outcome = simulate(sim_requests(load_workload("L-L?rate=0.8&requests=150&seed=1")), setup)
    record = next(row for row in outcome.migrations if row.outcome == MOVED)
    scheduler = entries(tmp_path / "scheduler.jsonl", SchedulerEntry)
    (decided,) = [c for e in scheduler for c in e.commands if isinstance(c, MoveRequest) and follows(c, record)]
    assert decided.order.reason == record.reason
    source = entries(tmp_path / f"{record.source}.jsonl", Entry)
    assert [e.event.order for e in source if isinstance(e.event, MoveOrdered) and follows(e.event, record)] == [
        decided.order
    ]
    told = [c for e in source for c in e.commands if isinstance(c, Notify) and isinstance(c.message, Moved)]
    (notice,) = [command.message for command in told if follows(command.message.outcome, record)]  # type: ignore[union-attr]
    assert notice.outcome.order == decided.order  # type: ignore[union-attr]
    (heard,) = [e.event for e in scheduler if isinstance(e.event, MigrationEnded) and follows(e.event.outcome, record)]
    assert heard.outcome == notice.outcome, "scheduler and front end hear the same"  # type: ignore[union-attr]
    assert (heard.outcome.request, heard.outcome.figures.bytes_copied) == (record.request_id, record.bytes)


def entries(path: Path, kind: type[Any]) -> list[Any]:
    return [msgspec.json.decode(line, type=kind) for line in path.read_bytes().splitlines()[1:]]


def follows(part: Any, record: MigrationRecord) -> bool:
    return bool(part.order.move_id == record.move_id)


def test_front_end_was_asked_for_all_that_it_decides(recordings: list[Path]) -> None:
    (recording,) = (path.read_text() for path in recordings if path.stem == "front-end")
    for kind in ("Arrived", "Noticed", "Departed", "Finished", "SendTo", "ReplayAt", "TellVerdict"):
        assert f'"type":"{kind}"' in recording, kind


@pytest.mark.parametrize(
    ("machine", "command"),
    [
        ("scheduler", {"type": "RoundAt", "at": 0.5}),
        ("front-end", {"type": "Park", "request": "r", "why": "none"}),
        ("i", {"type": "WakeAt", "at": 0.5}),
    ],
)
def test_a_command_that_was_not_given_is_found(
    machine: str, command: dict[str, object], recordings: list[Path], tmp_path: Path
) -> None:
    kinds = [path for path in recordings if path.stem.startswith(machine)]
    lines = max((path.read_bytes() for path in kinds), key=len).splitlines()
    forged = msgspec.json.decode(lines[7])
    forged[1 if isinstance(forged, list) else "commands"].append(command)
    (tmp_path / "forged.jsonl").write_bytes(b"\n".join([*lines[:7], msgspec.json.encode(forged), *lines[8:], b""]))
    (found,) = differences(tmp_path / "forged.jsonl")
    assert found.number == 7
    assert len(found.then) == len(found.now) + 1


def test_an_entry_that_was_cut_off_does_not_count(recordings: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl").write_bytes(recordings[0].read_bytes()[:-9])
    assert differences(tmp_path / "cut.jsonl") == []


def test_a_broken_recording_is_named_by_its_line(recordings: list[Path], tmp_path: Path) -> None:
    lines = recordings[0].read_bytes().splitlines()
    (tmp_path / "broken.jsonl").write_bytes(b"\n".join([*lines[:3], b"{", b""]))
    with pytest.raises(UsageError, match=r"broken.jsonl:4: not an entry"):
        differences(tmp_path / "broken.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UsageError, match="not the beginning"):
        differences(tmp_path / "empty.jsonl")
    with pytest.raises(UsageError, match="Cannot read"):
        differences(tmp_path / "none.jsonl")
