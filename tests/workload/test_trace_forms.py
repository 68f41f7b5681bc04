"""Which form a trace has is certain, and what it says is plausible; else it is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llumnix.errors import UsageError
from llumnix.workload.trace import load_trace
from llumnix.workload.workload import TRACES, load_workload

Row = dict[str, Any]


def rows(make: Callable[[int], Row], count: int) -> str:
    return "".join(json.dumps(make(index)) + "\n" for index in range(count))


def azure(count: int) -> str:
    lines = [f"2023-11-16 18:15:{index % 60:02}.6805900,{100 + index},44\n" for index in range(count)]
    return "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(lines)


def mooncake(index: int) -> Row:
    tokens = 600 + 100 * index
    return {
        "timestamp": 3000 * (index // 9),
        "input_length": tokens,
        "output_length": 52,
        "hash_ids": [*range(-(-tokens // 512))],
    }


def bailian(index: int) -> Row:
    tokens = 521 + index
    return {
        "chat_id": 159 + index,
        "parent_chat_id": -1,
        "timestamp": round(61.1 + 0.3 * index, 3),
        "input_length": tokens,
        "output_length": 132,
        "type": "text",
        "turn": 1,
        "hash_ids": [*range(-(-tokens // 16))],
    }


def ours(index: int) -> Row:
    return {"arrival_s": 0.25 * index, "prompt_tokens": 40, "output_tokens": 7}


READ = {
    "an Azure CSV": ("t.csv", azure(40), 39.0, (100, 44), 0),
    "a Mooncake trace": ("t.jsonl", rows(mooncake, 40), 12.0, (600, 52), 512),
    "a Qwen-Bailian trace": ("t.jsonl", rows(bailian, 40), 11.7, (521, 132), 16),
    "one row of a Qwen-Bailian trace": ("t.jsonl", rows(bailian, 1), 0.0, (521, 132), 16),
    "a Qwen-Bailian trace without content": (
        "t.jsonl",
        rows(lambda i: {k: v for k, v in bailian(i).items() if k != "hash_ids"}, 40),
        11.7,
        (521, 132),
        0,
    ),
    "our own form": ("t.jsonl", rows(ours, 40), 9.75, (40, 7), 0),
    "our own form with blocks of 64": (
        "t.jsonl",
        rows(lambda i: ours(i) | {"block_hashes": [i], "block_tokens": 64}, 40),
        9.75,
        (40, 7),
        64,
    ),
    "the records of a run": (
        "requests.csv",
        "id,arrival_s,prompt_tokens,output_tokens,ttft_s,instances\na,1,40,7,0.1,i0\nb,10.75,40,7,0.1,i1;i0\n",
        9.75,
        (40, 7),
        0,
    ),
}


@pytest.mark.parametrize("what", READ)
def test_a_trace_is_read_with_its_own_units(what: str, tmp_path: Path) -> None:
    name, text, duration_s, first, hashed_tokens = READ[what]
    (tmp_path / name).write_text(text)
    workload = load_workload(str(tmp_path / name))
    assert workload.duration_s == pytest.approx(duration_s)
    assert (workload.requests[0].prompt_tokens, workload.requests[0].output_tokens) == first
    assert workload.hashed_tokens == hashed_tokens


@pytest.mark.parametrize(
    ("name", "span_h", "mean_prompt", "hashed_tokens"),
    [("azure-code", 1, 2048, 0), ("azure-conv", 1, 1155, 0), ("mooncake-conv", 1, 12035, 512)],
)
def test_every_trace_of_the_package_is_read_with_its_own_units(
    name: str, span_h: float, mean_prompt: int, hashed_tokens: int
) -> None:
    workload = load_workload(name)
    prompts = [request.prompt_tokens for request in workload.requests]
    assert workload.duration_s / 3600 == pytest.approx(span_h, rel=0.05)
    assert sum(prompts) / len(prompts) == pytest.approx(mean_prompt, rel=0.01)
    assert workload.hashed_tokens == hashed_tokens


def test_every_trace_of_the_package_is_walked() -> None:
    assert set(TRACES) == {"azure-code", "azure-conv", "mooncake-conv"}


def without(make: Callable[[int], Row], *names: str) -> Callable[[int], Row]:
    return lambda index: {name: value for name, value in make(index).items() if name not in names}


REFUSED = {
    "seconds in a trace that looks like Mooncake": (
        rows(without(bailian, "chat_id"), 3),
        r":1: timestamp is 61\.1, not a time: in a Mooncake trace it is a whole number of milliseconds",
    ),
    "small blocks in a trace that looks like Mooncake": (
        rows(lambda i: without(bailian, "chat_id")(i) | {"timestamp": 61}, 3),
        r":1: 33 content ids for 521 tokens are too many for blocks of 512 tokens, as a Mooncake trace has them",
    ),
    "large blocks in a trace that looks like Mooncake": (
        rows(lambda i: mooncake(i) | {"input_length": 2048, "hash_ids": [1]}, 3),
        r"jsonl: 3 content ids are too few for blocks of 512 tokens",
    ),
    "Mooncake's blocks with a chat_id": (
        rows(lambda i: bailian(i) | {"hash_ids": [1, 2]}, 3),
        r"jsonl: 6 content ids are too few for blocks of 16 tokens, as a Qwen-Bailian trace has them",
    ),
    "whole seconds in a trace that looks like Mooncake": (
        rows(lambda i: mooncake(i) | {"timestamp": i // 3}, 40),
        r"jsonl: 40 requests in 0\.013 s are not plausible: timestamp has another unit than in a Mooncake trace",
    ),
    "microseconds in a trace that looks like Mooncake": (
        rows(lambda i: mooncake(i) | {"timestamp": 300_000 * i}, 40),
        r"jsonl: 40 requests in 11700 s are not plausible",
    ),
    "milliseconds with a chat_id": (
        rows(lambda i: bailian(i) | {"timestamp": 61_114 + 317 * i}, 40),
        r"jsonl: the timestamp of a Qwen-Bailian trace is in seconds with fractions, but here all are whole",
    ),
    "milliseconds with fractions and a chat_id": (
        rows(lambda i: bailian(i) | {"timestamp": 61_114.5 + 417.3 * i}, 40),
        r"jsonl: 40 requests in 16274\.7 s are not plausible",
    ),
    "a timestamp of a unit that nobody can know": (
        rows(without(mooncake, "hash_ids"), 3),
        r":1: timestamp may be in seconds or in milliseconds",
    ),
    "clock times in a column of numbers": (
        rows(lambda i: mooncake(i) | {"timestamp": "2023-11-16 18:15:46"}, 3),
        r":1: timestamp is '2023-11-16 18:15:46', not a time",
    ),
    "two forms in one row": (
        rows(lambda i: mooncake(i) | ours(i), 3),
        r":1: this can be a Mooncake trace or a trace of our own form: leave out the columns of one",
    ),
    "two forms in one file": (
        rows(mooncake, 2) + rows(ours, 2),
        r":3: this row lacks timestamp; the first one is of a Mooncake trace",
    ),
    "a chat_id that comes late": (
        rows(mooncake, 2) + rows(bailian, 2),
        r":3: this row is of another form; the first one is of a Mooncake trace",
    ),
    "content of blocks of two sizes": (
        rows(lambda i: ours(i) | {"block_hashes": [i], "block_tokens": 64 + i}, 3),
        r":2: blocks of 65 tokens and of 64 in one trace",
    ),
    "our own form with small blocks that are not named": (
        rows(lambda i: ours(i) | {"block_hashes": [1, 2, 3]}, 3),
        r":1: 3 content ids for 40 tokens are too many for blocks of 512 tokens",
    ),
    "columns of something else": (
        rows(lambda i: {"time": i, "tokens": 5}, 3),
        r":1: not a trace: a row must have arrival_s",
    ),
    "Azure's columns as JSON": (
        rows(lambda i: {"TIMESTAMP": "2023-11-16 18:15:46", "ContextTokens": 5, "GeneratedTokens": 5}, 3),
        r":1: not a trace",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_trace_that_may_be_misread_is_refused(what: str, tmp_path: Path) -> None:
    text, says = REFUSED[what]
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        load_trace(tmp_path / "t.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        "timestamp,input_length,output_length",
        "timestamp,input_length,output_length,hash_ids",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "TIMESTAMP,ContextTokens,GeneratedTokens,arrival_s,prompt_tokens,output_tokens",
    ],
)
def test_a_csv_file_of_any_other_form_is_refused(header: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(header + "\n" + ",".join("1" * len(header.split(","))) + "\n")
    with pytest.raises(UsageError, match=r"t\.csv:1: (not a trace|this can be)"):
        load_trace(tmp_path / "t.csv")


def test_a_few_rows_of_one_moment_are_no_reason_to_doubt(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(rows(lambda i: mooncake(i) | {"timestamp": 0}, 40))
    assert load_workload(str(tmp_path / "t.jsonl")).duration_s == 0.0
