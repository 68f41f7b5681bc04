from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from openai_server import OpenAIServer, serving


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    """An OpenAI server of this test alone."""
    async with serving(OpenAIServer()) as running:
        yield running
