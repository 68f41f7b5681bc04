"""The client of token streams that tests and benchmarks use says how far a stream came that does not end."""

from __future__ import annotations

import pytest
from frame.stream import COMPLETIONS, open_session, stream
from openai_server import OpenAIServer


async def test_stream_that_does_not_end_in_time_is_named_with_what_it_said(server: OpenAIServer) -> None:
    server.faults["1"] = "hang"
    async with open_session(server.url, timeout_s=0.5) as session:
        with pytest.raises(TimeoutError, match=r"stuck-1 has said 0 tokens in \d+ s"):
            await stream(session, COMPLETIONS, {"prompt": "a", "max_tokens": 9}, name="stuck-1")
