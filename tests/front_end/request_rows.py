"""Rows of `GET /llumnix/v1/requests`."""

from __future__ import annotations

from llumnix.types import RequestId
from llumnix.wire.to_front_end import RequestRow


def row(request: str, client_id: str, front_end: int = 0) -> RequestRow:
    return RequestRow(
        request=RequestId(request),
        client_id=client_id,
        front_end=front_end,
        priority=0,
        prompt_tokens=1,
        output_tokens=1,
        state="running",
        migrations=0,
    )
