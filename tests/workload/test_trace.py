from __future__ import annotations

import contextlib
import gzip
import lzma
from pathlib import Path

import msgspec
import pytest

from llumnix.errors import UsageError
from llumnix.types import HIGH
from llumnix.workload.trace import Trace, WorkloadRequest, load_trace
from llumnix.workload.workload import load_workload

REQUESTS = [
    WorkloadRequest("a", 0.0, 10, 20),
    WorkloadRequest("b, with comma", 0.123456789, 300, 1, HIGH, (4, 5, 2**63), 128),
    WorkloadRequest("c", 1e6 + 1e-9, 1, 6144, tenant="alice", cls="batch"),
]

OURS_CSV = """arrival_s,id,prompt_tokens,output_tokens,priority,block_hashes,block_tokens,tenant,class
0,a,10,20,0,,512,,
0.123456789,"b, with comma",300,1,-1,4 5 9223372036854775808,128,,
1000000.000000001,c,1,6144,,,,alice,batch
"""

OURS_JSON = b"".join(msgspec.json.encode(request) + b"\n" for request in REQUESTS).decode()

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 23:59:59.9999600,4808,10\r
2023-11-17 00:00:00.0519600,3180,8"""

MOONCAKE = """{"timestamp": 27000, "input_length": 1025, "output_length": 2, "hash_ids": [0, 7, 9]}
{"timestamp": 30500, "input_length": 3, "output_length": 1, "hash_ids": [0]}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize(("name", "text"), [("trace.csv", OURS_CSV), ("trace.jsonl", OURS_JSON)])
def test_our_own_form_says_all_that_there_is(tmp_path: Path, name: str, text: str) -> None:
    assert load_trace(write(tmp_path / name, text)) == Trace(REQUESTS, silent=0)


@pytest.mark.parametrize(
    ("name", "text", "row"),
    [
        ("trace.csv", OURS_CSV, "7,left,5,0,,,,,\n"),
        ("trace.jsonl", OURS_JSON, '{"id": "left", "arrival_s": 7, "prompt_tokens": 5, "output_tokens": 0}\n'),
    ],
)
def test_rows_of_a_run_that_made_no_token_are_left_out_and_counted(
    tmp_path: Path, name: str, text: str, row: str
) -> None:
    """Nobody can ask for them again: they failed, or their clients left before."""
    assert load_trace(write(tmp_path / name, text + row)) == Trace(REQUESTS, silent=1)
    assert load_workload(str(tmp_path / name)).left_out.startswith("1 row is left out of")


def test_azure_rows_keep_their_distances_over_midnight(tmp_path: Path) -> None:
    first, second = load_trace(write(tmp_path / "azure.csv", AZURE)).requests
    assert (first.id, first.arrival_s, first.prompt_tokens, first.output_tokens) == ("r000000", 0.0, 4808, 10)
    assert (second.id, second.arrival_s, second.prompt_tokens, second.output_tokens) == ("r000001", 0.052, 3180, 8)


def test_mooncake_rows_keep_their_content_ids(tmp_path: Path) -> None:
    first, second = load_trace(write(tmp_path / "mooncake.jsonl", MOONCAKE)).requests
    assert first == WorkloadRequest("r000000", 0.0, 1025, 2, block_hashes=(0, 7, 9))
    assert second == WorkloadRequest("r000001", 3.5, 3, 1, block_hashes=(0,))


def test_compressed_files_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + AZURE.encode()))
    assert len(load_trace(path).requests) == 2


def test_rows_out_of_order_are_sorted_by_time(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "arrival_s,prompt_tokens,output_tokens\n5,1,1\n2,2,2\n")
    assert [(r.arrival_s, r.prompt_tokens) for r in load_trace(path).requests] == [(0.0, 2), (3.0, 1)]


def test_requests_of_one_id_get_ids_of_their_own(tmp_path: Path) -> None:
    """A client that tries again gives the same."""
    rows = [("a", 1), ("a#2", 2), ("a", 3), ("", 4), ("a", 5), ("r000003", 6)]
    text = "id,arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{name},{at},1,1\n" for name, at in rows)
    names = [each.id for each in load_trace(write(tmp_path / "t.csv", text)).requests]
    assert names == ["a", "a#2", "a#3", "r000003", "a#4", "r000003#2"]


def test_a_row_that_a_server_is_writing_just_now_is_none_yet(tmp_path: Path) -> None:
    torn = OURS_JSON + OURS_JSON[:20]
    assert load_trace(write(tmp_path / "requests-f0-000.jsonl", torn)).requests == REQUESTS


def test_more_columns_than_needed_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,arrival_s,prompt_tokens,output_tokens,ttft_s\nx,0,1,2,0.5\n")
    assert load_trace(path).requests == [WorkloadRequest("x", 0.0, 1, 2)]


OURS = "arrival_s,prompt_tokens,output_tokens\n0,1,1\n"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", OURS + "1,two,3\n", r"t\.csv:3: prompt_tokens is 'two'"),
        ("t.csv", OURS + "1,2,-1\n", r"t\.csv:3: output_tokens is '-1'"),
        ("t.csv", OURS + "1,0,1\n", r"t\.csv:3: prompt_tokens is '0'"),
        ("t.csv", OURS.replace("0,1,1", "0,1,0"), r"no requests that made a token"),
        ("t.csv", AZURE.replace(",10\r", ",0\r"), r"t\.csv:2: GeneratedTokens is '0'"),
        ("t.csv", OURS + "1,2,1.5\n", r"t\.csv:3: output_tokens is '1\.5'"),
        ("t.csv", OURS + "nan,2,1\n", r"t\.csv:3: arrival_s is 'nan'"),
        ("t.csv", OURS + "inf,2,1\n", r"t\.csv:3: arrival_s is 'inf'"),
        ("t.csv", OURS + "1,2\n", r"t\.csv:3: this row does not have 3 fields"),
        ("t.csv", OURS + "1,2,3,4\n", r"t\.csv:3: this row does not have 3 fields"),
        ("t.csv", "a,b\n1,2\n", r"t\.csv:1: not a trace"),
        ("t.csv", "", r"t\.csv:1: not a trace"),
        ("t.csv", AZURE.replace("2023-11-17 00", "yesterday"), r"t\.csv:3: TIMESTAMP is 'yesterday"),
        ("t.jsonl", MOONCAKE + "{", r"t\.jsonl:3: not a JSON object"),
        ("t.jsonl", MOONCAKE + "[1]", r"t\.jsonl:3: not a JSON object"),
        ("t.jsonl", MOONCAKE + '{"timestamp": 1}', r"t\.jsonl:3: this row lacks"),
        (
            "t.jsonl",
            MOONCAKE + '{"timestamp": 1, "input_length": null, "output_length": 1, "hash_ids": []}',
            r"t\.jsonl:3: input_len",
        ),
        ("t.jsonl", MOONCAKE.replace("[0]", '["x"]'), r"t\.jsonl:2: hash_ids is"),
        ("t.jsonl", MOONCAKE.replace("[0]", "7"), r"t\.jsonl:2: hash_ids is"),
        ("t.jsonl", MOONCAKE.replace("[0]", "[-1]"), r"t\.jsonl:2: hash_ids is"),
        ("t.jsonl", MOONCAKE.replace("1025", "1e400"), r"t\.jsonl:1: "),
        ("t.jsonl", MOONCAKE.replace("27000", '"' + "9" * 5000 + '"'), r"t\.jsonl:1: timestamp is"),
        ("t.csv", OURS + "1," + "9" * 5000 + ",1\n", r"t\.csv:3: prompt_tokens is"),
        ("t.csv", OURS + "1,99999999999,1\n", r"t\.csv:3: prompt_tokens is"),
        ("t.jsonl", "\n", "has no requests"),
        ("t.csv.gz", "not gzip", "Cannot read the trace"),
        ("t.csv.xz", "not xz", "Cannot read the trace"),
    ],
)
def test_broken_row_is_refused_with_file_and_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        load_trace(write(tmp_path / name, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compressed", [gzip.compress(AZURE.encode() * 99), lzma.compress(AZURE.encode() * 99)])
def test_compressed_files_that_were_damaged_are_refused(tmp_path: Path, compressed: bytes) -> None:
    path = tmp_path / ("trace.csv.gz" if compressed.startswith(b"\x1f\x8b") else "trace.csv.xz")
    for place in range(len(compressed)):
        path.write_bytes(compressed[:place])
        with pytest.raises(UsageError):
            load_trace(path)
        path.write_bytes(compressed[:place] + b"\xff" + compressed[place + 1 :])
        with contextlib.suppress(UsageError):  # in the header, say the time, it does no harm
            load_trace(path)


def test_missing_file_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_trace(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UsageError, match="Cannot read the trace"):
        load_trace(tmp_path / "binary.csv")
