from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from llumnix.errors import UsageError
from llumnix.types import HIGH
from llumnix.workload.trace import WorkloadRequest, load_trace, save_trace

REQUESTS = [
    WorkloadRequest("a", 0.0, 10, 20),
    WorkloadRequest("b, with comma", 0.123456789, 300, 1, HIGH, (4, 5, 2**63), 128),
    WorkloadRequest("c", 1e6 + 1e-9, 1, 6144, tenant="alice", cls="batch"),
]

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 23:59:59.9999600,4808,10\r
2023-11-17 00:00:00.0519600,3180,8"""

MOONCAKE = """{"timestamp": 27000, "input_length": 1025, "output_length": 2, "hash_ids": [0, 7, 9]}
{"timestamp": 30500, "input_length": 3, "output_length": 1, "hash_ids": [0]}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize("name", ["trace.csv", "trace.jsonl"])
def test_our_own_form_comes_back_as_it_was_saved(tmp_path: Path, name: str) -> None:
    save_trace(tmp_path / name, REQUESTS)
    assert load_trace(tmp_path / name) == REQUESTS


def test_azure_rows_keep_their_distances_over_midnight(tmp_path: Path) -> None:
    first, second = load_trace(write(tmp_path / "azure.csv", AZURE))
    assert (first.id, first.arrival_s, first.prompt_tokens, first.output_tokens) == ("r000000", 0.0, 4808, 10)
    assert (second.id, second.arrival_s, second.prompt_tokens, second.output_tokens) == ("r000001", 0.052, 3180, 8)


def test_mooncake_rows_keep_their_content_ids(tmp_path: Path) -> None:
    first, second = load_trace(write(tmp_path / "mooncake.jsonl", MOONCAKE))
    assert first == WorkloadRequest("r000000", 0.0, 1025, 2, block_hashes=(0, 7, 9))
    assert second == WorkloadRequest("r000001", 3.5, 3, 1, block_hashes=(0,))


def test_compressed_files_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + AZURE.encode()))
    assert len(load_trace(path)) == 2


def test_rows_out_of_order_are_sorted_by_time(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "arrival_s,prompt_tokens,output_tokens\n5,1,1\n2,2,2\n")
    assert [(r.arrival_s, r.prompt_tokens) for r in load_trace(path)] == [(0.0, 2), (3.0, 1)]


def test_more_columns_than_needed_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,arrival_s,prompt_tokens,output_tokens,ttft_s\nx,0,1,2,0.5\n")
    assert load_trace(path) == [WorkloadRequest("x", 0.0, 1, 2)]


OURS = "arrival_s,prompt_tokens,output_tokens\n0,1,1\n"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", OURS + "1,two,3\n", r"t\.csv:3: prompt_tokens is 'two'"),
        ("t.csv", OURS + "1,2,0\n", r"t\.csv:3: output_tokens is '0'"),
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


def test_missing_file_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_trace(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UsageError, match="Cannot read the trace"):
        load_trace(tmp_path / "binary.csv")
