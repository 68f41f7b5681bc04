from __future__ import annotations

import json

import pytest

from llumnix.bench.completion import BadAnswer, Prompts, Target, TokenTimes
from llumnix.stream_lines import MAX_LINE_BYTES, LineSplitter
from llumnix.types import HIGH
from llumnix.workload.workload import WorkloadRequest


def event(text: str = "", *, total: int | None = None, finish: str | None = None, choices: bool = True) -> bytes:
    fields: dict[str, object] = {
        "id": "cmpl-1",
        "choices": [{"text": text, "finish_reason": finish}] if choices else [],
    }
    if total is not None:
        fields["usage"] = {"completion_tokens": total}
    return b"data: " + json.dumps(fields).encode()


def test_tokens_are_counted_by_usage_and_timed_by_arrival() -> None:
    times = TokenTimes(zero_s=100.0)
    times.on_line(event("", total=1), 101.0)
    times.on_line(event("ab", total=3), 101.5)
    times.on_line(event("", total=3, finish="length"), 109.0)
    times.on_line(event(total=3, choices=False), 110.0)
    times.on_line(b"data: [DONE]", 110.0)
    assert (times.tokens, times.first_s, times.last_s, times.largest_gap_s) == (3, 1.0, 1.5, 0.5)
    assert times.server_id == "cmpl-1"
    assert times.ended


def test_each_chunk_counts_as_a_token_where_there_is_no_usage_also_half_of_a_character() -> None:
    times = TokenTimes()
    for second, text in enumerate(["a", "", "bcd"], start=1):
        times.on_line(event(text), float(second))
    times.on_line(event("", finish="stop"), 9.0)
    assert (times.tokens, times.first_s, times.last_s, times.largest_gap_s) == (3, 1.0, 3.0, 1.0)


@pytest.mark.parametrize("total", [2, 5])
def test_the_usage_at_the_end_has_the_last_word(total: int) -> None:
    times = TokenTimes()
    for second in (1.0, 2.0, 3.0):
        times.on_line(event("a"), second)
    times.on_line(event(total=total, choices=False), 4.0)
    assert (times.tokens, times.last_s) == (total, 3.0)


@pytest.mark.parametrize("usage", [True, False])
def test_a_second_stream_counts_from_its_first_token_and_is_news_from_where_the_first_broke(usage: bool) -> None:
    times = TokenTimes()

    def token(number: int, at_s: float) -> None:
        times.on_line(event("a", total=number if usage else None), at_s)

    for number in (1, 2, 3):
        token(number, float(number))
    times.begin_again()
    for number in (1, 2, 3, 4, 5):
        token(number, 10.0 + number)
    assert (times.tokens, times.first_s, times.last_s, times.largest_gap_s) == (5, 1.0, 15.0, 11.0)


def test_first_token_at_time_zero_is_a_first_token() -> None:
    times = TokenTimes()
    times.on_line(event(total=1), 0.0)
    times.on_line(event(total=2), 1.0)
    assert (times.first_s, times.largest_gap_s) == (0.0, 1.0)


@pytest.mark.parametrize("line", [b"", b": ping", b"event: token", b"id: 7", b"retry: 10", b"data:[DONE]"])
def test_lines_without_tokens_are_fine(line: bytes) -> None:
    times = TokenTimes()
    times.on_line(line, 1.0)
    assert times.tokens == 0


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"data: {", "malformed answer"),
        (b"data: []", "malformed answer"),
        (b'data: {"choices": [{"text": "\xff"}]}', "malformed answer"),
        (b'data: {"choices": 3}', "malformed answer"),
        (b"<html>", "malformed answer"),
        (b'data: {"error": {"message": "engine died"}}', "error in the stream"),
        (event(finish="abort"), "finished with abort"),
    ],
)
def test_bad_lines_are_told_apart(line: bytes, kind: str) -> None:
    with pytest.raises(BadAnswer, match=kind):
        TokenTimes().on_line(line, 1.0)


def test_lines_are_whole_however_the_bytes_come() -> None:
    text = b"data: one\r\n\r\ndata: two\n\nrest"
    for size in range(1, len(text) + 1):
        splitter = LineSplitter()
        lines: list[bytes] = []
        for start in range(0, len(text), size):
            lines += splitter.feed(text[start : start + size])
        assert lines == [b"data: one", b"", b"data: two", b""]


def test_line_without_an_end_is_malformed() -> None:
    splitter = LineSplitter()
    with pytest.raises(ValueError, match="malformed answer"):
        list(splitter.feed(b"x" * (MAX_LINE_BYTES + 1)))


PROMPTS = Prompts(seed=3, vocab=100)


def request(tokens: int, hashes: tuple[int, ...] = ()) -> WorkloadRequest:
    return WorkloadRequest("r", 0.0, tokens, 5, block_hashes=hashes)


def test_prompts_are_exactly_as_long_as_wanted_and_the_same_each_time() -> None:
    ids = PROMPTS.token_ids(request(1000), 7)
    assert len(ids) == 1000
    assert set(ids) <= set(range(100))
    assert ids == Prompts(seed=3, vocab=100).token_ids(request(1000), 7)
    assert ids != PROMPTS.token_ids(request(1000), 8)
    assert ids != Prompts(seed=4, vocab=100).token_ids(request(1000), 7)


def test_prompts_as_text_have_a_character_for_each_token_and_share_as_much() -> None:
    first, second = PROMPTS.text(request(1100, (4, 5)), 0), PROMPTS.text(request(1100, (4, 6)), 1)
    assert (len(first), first.isalnum()) == (1100, True)
    assert (first[:512] == second[:512], first[512:] == second[512:]) == (True, False)
    body = json.loads(Target("http://x", "tiny", PROMPTS, text=True).body(request(1100, (4, 5)), 0))
    assert body["prompt"] == first


def test_prompts_share_what_their_blocks_share() -> None:
    first = PROMPTS.token_ids(request(1100, (4, 5, 6)), 0)
    second = PROMPTS.token_ids(request(1200, (4, 5, 7)), 1)
    assert (len(first), len(second)) == (1100, 1200)
    assert first[:1024] == second[:1024]
    assert first[1024:] != second[1024:1100]


def test_blocks_are_as_large_as_their_trace_says() -> None:
    def ids(index: int, *hashes: int) -> list[int]:
        row = WorkloadRequest("r", 0.0, 50, 5, block_hashes=hashes, block_tokens=16)
        return PROMPTS.token_ids(row, index)

    first, second = ids(0, 4, 5, 6, 7), ids(1, 4, 5, 8, 9)
    assert len(first) == len(second) == 50
    assert first[:32] == second[:32]
    assert first[32:48] != second[32:48]


def test_prompt_longer_than_its_blocks_ends_with_content_of_its_own() -> None:
    first, second = (PROMPTS.token_ids(request(600, (4,)), index) for index in (0, 1))
    assert len(first) == len(second) == 600
    assert first[:512] == second[:512]
    assert first[512:] != second[512:]


def test_body_forces_the_length_and_names_a_priority_only_if_it_is_not_normal() -> None:
    target = Target("http://x", "tiny", PROMPTS)
    body = json.loads(target.body(request(3), 0))
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"], body["temperature"]) == (5, 5, True, 0)
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "priority" not in body
    high = WorkloadRequest("r", 0.0, 1, 1, priority=HIGH)
    assert json.loads(target.body(high, 0))["priority"] == -1
