"""From the ids inside the engines to the id that the client was given."""

from __future__ import annotations

import pytest

from llumnix.engine.vllm.front_end.client_ids import client_visible_id


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("chatcmpl-8f3a", "chatcmpl-8f3a"),
        ("cmpl-8f3a-0", "cmpl-8f3a"),
        ("cmpl-8f3a-12", "cmpl-8f3a"),
        ("1_cmpl-8f3a-0", "cmpl-8f3a"),
        ("10_chatcmpl-8f3a", "chatcmpl-8f3a"),
        ("cmpl-my-own-name-3", "cmpl-my-own-name"),
        ("chatcmpl-run-7", "chatcmpl-run-7"),
        ("chatcmpl-run_7", "chatcmpl-run_7"),
        ("chatcmpl-0123456789abcdef_7", "chatcmpl-0123456789abcdef"),
        ("resp_0123456789abcdef_0", "resp_0123456789abcdef"),
        ("resp_12_3", "resp_12"),
        ("my-own_0", "my-own"),
        ("cmpl-8f3a-0-0123456789abcdef-beam-3", "cmpl-8f3a"),
        ("chatcmpl-8f3a-0123456789abcdef-beam-12", "chatcmpl-8f3a"),
        ("chatcmpl-my-beam-3", "chatcmpl-my-beam-3"),
        ("embd-8f3a-0", "embd-8f3a"),
        ("embd-my-3-0", "embd-my-3"),
        ("embd-my_3-0", "embd-my_3"),
        ("embd-8f3a-prompt-1-chunk-2", "embd-8f3a"),
        ("embd-a-prompt-1-chunk-2-0", "embd-a-prompt-1-chunk-2"),
        ("classify-8f3a-1", "classify-8f3a"),
        ("score-8f3a-1", "score-8f3a"),
        ("pooling-8f3a-1", "pooling-8f3a"),
        ("generative-scoring-8f3a-7", "generative-scoring-8f3a"),
        ("decision-8f3a-0", "decision-8f3a"),
        ("transcribe-0123456789abcdef", "transcribe-0123456789abcdef"),
        ("transcribe-0123456789abcdef-4", "transcribe-0123456789abcdef"),
        ("translate-0123456789abcdef-4", "translate-0123456789abcdef"),
        ("transcribe-my-own-lang_detect", "transcribe-my-own"),
        ("transcribe-run-7", "transcribe-run-7"),
        ("transcribe-run_7", "transcribe-run_7"),
        ("generate-tokens-run_7", "generate-tokens-run_7"),
        ("cmpl-of\nlines\n-0", "cmpl-of\nlines\n"),
        ("my\nown_0", "my\nown"),
        ("translate-my\nown-lang_detect", "translate-my\nown"),
    ],
)
def test_sequences_of_a_request_have_its_id(inside: str, outside: str) -> None:
    assert client_visible_id(inside) == outside
