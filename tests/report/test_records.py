from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.control.orders import MoveCause, StayCause
from llumnix.errors import UsageError
from llumnix.report.records import (
    InstanceRecord,
    MigrationRecord,
    Records,
    RequestRecord,
    read_records,
    read_rows,
    write_records,
    write_rows,
)
from llumnix.types import HIGH, InstanceState

RECORDS = Records(
    requests=[
        RequestRecord(
            id="r0",
            arrival_s=0.25,
            prompt_tokens=128,
            output_tokens=64,
            priority=HIGH,
            ttft_s=0.031,
            tpot_s=0.012345,
            latency_s=1.5,
            largest_gap_s=0.2,
            preemptions=1,
            migrations=2,
            instances=("i0", "i1", "i0"),
        ),
        RequestRecord(id="r1", arrival_s=1e6, prompt_tokens=1, output_tokens=0, error='HTTP 400: "no", they said'),
    ],
    migrations=[
        MigrationRecord(
            at_s=2.5, request_id="r0", source="i0", target="i1", cause=MoveCause.BALANCE,
            reason="freeness 1.8 against 21.5", outcome="moved",
            stages=3, bytes=8 << 40, blocks_skipped=4, copy_ms=12.5, handover_ms=3.25, downtime_ms=0.0,
            move_id="scheduler-7-1",
        ),
        MigrationRecord(
            at_s=3, request_id="r1", source="i1", target="i0", cause=MoveCause.DRAIN,
            outcome="stayed: no room", stayed_by=StayCause.REFUSED,
        ),
    ],
    instances=[
        InstanceRecord(
            at_s=0, instance="i0", state=InstanceState.DRAINING, running=3, waiting=0,
            free_blocks=12, total_blocks=792, freeness=-math.inf, preemptions=7,
        )
    ],
)  # fmt: skip


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_records(tmp_path / "new" / "run", RECORDS)
    assert read_records(tmp_path / "new" / "run") == RECORDS


def test_columns_are_the_contract(tmp_path: Path) -> None:
    write_records(tmp_path, Records([]))
    headers = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert headers == {
        "requests.csv": "id,arrival_s,prompt_tokens,output_tokens,priority,ttft_s,tpot_s,latency_s,largest_gap_s,"
        "preemptions,migrations,instances,error\n",
        "migrations.csv": "at_s,request_id,source,target,cause,reason,outcome,stayed_by,stages,bytes,blocks_skipped,"
        "copy_ms,handover_ms,downtime_ms,move_id\n",
        "instances.csv": "at_s,instance,state,running,waiting,free_blocks,total_blocks,freeness,preemptions,"
        "preemptions_avoided,recompute_tokens_saved\n",
    }


def test_numbers_are_written_without_rounding_noise(tmp_path: Path) -> None:
    row = RequestRecord(
        id="r", arrival_s=0.1 + 0.2, prompt_tokens=1, output_tokens=1, ttft_s=-1e-9, tpot_s=1e-7, latency_s=100.0
    )
    write_rows(tmp_path / "r.csv", RequestRecord, [row])
    assert (tmp_path / "r.csv").read_text().splitlines()[1] == "r,0.3,1,1,0,0,0,100,,,,,"


times = st.floats(min_value=0, max_value=1e7).map(lambda x: round(x, 6))


@given(
    st.lists(
        st.builds(
            RequestRecord,
            id=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
            arrival_s=times,
            prompt_tokens=st.integers(1, 10**9),
            output_tokens=st.integers(0, 10**9),
            ttft_s=st.none() | times,
            latency_s=st.none() | times,
            instances=st.lists(st.sampled_from(["a", "b"])).map(tuple),
            error=st.text(st.characters(exclude_categories=["Cs", "Cc"])),
        )
    )
)
def test_any_request_survives_the_file(tmp_path_factory: pytest.TempPathFactory, rows: list[RequestRecord]) -> None:
    path = tmp_path_factory.mktemp("rows") / "requests.csv"
    write_rows(path, RequestRecord, rows)
    assert read_rows(path, RequestRecord) == rows
    first = path.read_bytes()
    write_rows(path, RequestRecord, read_rows(path, RequestRecord))
    assert path.read_bytes() == first


def test_columns_of_a_later_version_are_ignored_and_missing_files_are_empty(tmp_path: Path) -> None:
    (tmp_path / "requests.csv").write_text("id,arrival_s,prompt_tokens,output_tokens,colour\nr,0,1,2,red\n")
    assert read_records(tmp_path) == Records(
        [RequestRecord(id="r", arrival_s=0, prompt_tokens=1, output_tokens=2)], [], []
    )


@pytest.mark.parametrize("row", ["r,soon,1,2", "r,0,1,", "r,0,1.5,2", "r,0", "r,0,1,2,3,4,5,6"])
def test_broken_row_is_refused_with_file_and_line(tmp_path: Path, row: str) -> None:
    (tmp_path / "requests.csv").write_text(f"id,arrival_s,prompt_tokens,output_tokens\nr,0,1,2\n{row}\n")
    with pytest.raises(UsageError, match=r"requests\.csv:3: not a row"):
        read_records(tmp_path)


def test_directory_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read .*requests\.csv: No such file"):
        read_records(tmp_path)
