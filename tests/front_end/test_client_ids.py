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
    ],
)
def test_sequences_of_a_request_have_its_id(inside: str, outside: str) -> None:
    assert client_visible_id(inside) == outside
