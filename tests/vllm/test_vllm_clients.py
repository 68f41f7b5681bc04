"""Real clients: the packages `openai` and `anthropic`, as users would use them, while the requests move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.stream import open_session

pytestmark = pytest.mark.timeout(240)

ASK: list[Any] = [{"role": "user", "content": "How deep is the lake?"}]
SCHEMA = {
    "type": "object",
    "properties": {"depth": {"type": "integer", "minimum": 0, "maximum": 99}, "place": {"enum": ["lake", "sea"]}},
    "required": ["depth", "place"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "measure", "description": "Measures.", "parameters": SCHEMA}}


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@asynccontextmanager
async def everything_moves(server: Server) -> AsyncIterator[list[str]]:
    """Whatever runs is moved back and forth for as long as the block lasts; gives the ids of what was moved."""
    moved: list[str] = []

    async def shuffle() -> None:
        async with open_session(server.url) as session:
            admin = Admin(session)
            while True:
                for row in await admin.requests():
                    status, _ = await admin.migrate(row.id, "i1" if row.instance == "i0" else "i0")
                    if status == 200:
                        moved.append(row.id)
                await asyncio.sleep(0.05)

    task = asyncio.create_task(shuffle())
    try:
        yield moved
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_streamed_chat_is_the_same_as_the_whole_answer(server: Server) -> None:
    async with client_of(server) as client:
        fixed: dict[str, Any] = {"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 300}
        whole = await client.chat.completions.create(**fixed)
        async with everything_moves(server) as moved:
            stream = await client.chat.completions.create(**fixed, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[0].id in moved


async def test_completion_that_is_not_streamed_moves_too(server: Server) -> None:
    async with client_of(server) as client:
        fixed: dict[str, Any] = {"model": "tiny", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 300}
        still = await client.completions.create(**fixed)
        async with everything_moves(server) as moved:
            answer = await client.completions.create(**fixed, logprobs=2)
    assert answer.choices[0].text == still.choices[0].text
    assert answer.choices[0].logprobs is not None
    assert answer.id in moved


async def test_logprobs_of_the_prompt_are_the_same_of_one_that_moves(server: Server) -> None:
    async with client_of(server) as client:
        fixed: dict[str, Any] = {"model": "tiny", "prompt": "Once upon a lake", "temperature": 0, "max_tokens": 300}
        asked = fixed | {"extra_body": {"prompt_logprobs": 1, "return_token_ids": True}}
        still = (await client.completions.create(**asked)).choices[0].model_dump()
        async with everything_moves(server) as moved:
            answer = await client.completions.create(**asked)
    said = answer.choices[0].model_dump()
    assert said["prompt_logprobs"] == still["prompt_logprobs"]
    assert len(said["prompt_logprobs"]) == len("Once upon a lake")
    assert said["token_ids"] == still["token_ids"]
    assert answer.id in moved


async def test_sampled_answer_without_a_seed_moves(server: Server) -> None:
    async with client_of(server) as client, everything_moves(server) as moved:
        answer = await client.completions.create(
            model="tiny", prompt="Once", temperature=1, max_tokens=300, extra_body={"ignore_eos": True}
        )
    assert (answer.choices[0].finish_reason, answer.usage and answer.usage.completion_tokens) == ("length", 300)
    assert answer.id in moved


async def test_structured_output_parses(server: Server) -> None:
    async with client_of(server) as client, everything_moves(server):
        for number in range(5):
            answer = await client.chat.completions.create(
                model="tiny",
                messages=ASK,
                seed=number,
                temperature=1,
                max_tokens=200,
                response_format={"type": "json_schema", "json_schema": {"name": "depth", "schema": SCHEMA}},
            )
            said = json.loads(answer.choices[0].message.content or "")
            assert said["place"] in ("lake", "sea")
            assert 0 <= said["depth"] <= 99


async def test_tool_is_called(server: Server) -> None:
    async with client_of(server) as client, everything_moves(server):
        answer = await client.chat.completions.create(
            model="tiny", messages=ASK, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=300
        )
    message = answer.choices[0].message
    assert message.tool_calls or message.content, answer


async def test_responses_and_models(server: Server) -> None:
    async with client_of(server) as client:
        models = await client.models.list()
        assert [model.id for model in models.data] == ["tiny"]
        answer = await client.responses.create(model="tiny", input="Hello", max_output_tokens=40, temperature=0)
    assert answer.output_text


async def test_service_tier_makes_a_request_important(server: Server) -> None:
    async with client_of(server) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=3000, stream=True, service_tier="priority"
        )
        await stream.__anext__()
        rows = await asyncio.to_thread(server.requests)
        assert [row["priority"] for row in rows] == ["high"]
        await stream.close()


async def test_bad_requests_are_refused_in_openais_words(server: Server) -> None:
    async with client_of(server) as client:
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="huge", prompt="x")
        with pytest.raises(openai.BadRequestError, match="context length"):
            await client.completions.create(model="tiny", prompt="x" * 9000, max_tokens=10)
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model="tiny", prompt="x", temperature=-1)
        answer = await client.completions.create(model="tiny", prompt="x", max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 3


@pytest.mark.parametrize(
    ("fields", "headers", "words"),
    [
        ({"top_k": 2**70}, {}, "The request has a value that cannot be sent to an engine"),
        ({}, {"X-data-parallel-rank": "9"}, "data_parallel_rank 9 is out of range [0, 2)"),
    ],
    ids=["number", "place"],
)
def test_request_that_cannot_be_sent_is_refused(
    server: Server, fields: dict[str, Any], headers: dict[str, str], words: str
) -> None:
    """As often as one likes: nothing of it stays, or the server could not end in time."""
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 2, **fields})
    for _ in range(20):
        answer = server.post("/v1/completions", content=body, headers={"Content-Type": "application/json", **headers})
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]


async def test_id_of_a_response_is_one_that_can_be_moved(server: Server) -> None:
    async with client_of(server) as client, everything_moves(server) as moved:
        for _ in range(20):  # one may end before it can be moved
            stream = await client.responses.create(model="tiny", input="How deep?", max_output_tokens=300, stream=True)
            events = [event async for event in stream]
            if moved:
                break
    assert events[0].type == "response.created"
    assert events[0].response.id in moved


async def test_anthropics_client_gets_the_same_of_a_message_that_moves(server: Server) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        fixed: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 300, "extra_body": {"temperature": 0}}
        whole = await client.messages.create(**fixed)
        async with everything_moves(server) as moved, client.messages.stream(**fixed) as stream:
            said = "".join([text async for text in stream.text_stream])
            streamed = await stream.get_final_message()
        counted = await client.messages.count_tokens(model="tiny", messages=ASK)
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(**fixed | {"model": "huge"})
    assert [said] == [block.text for block in whole.content if block.type == "text"]
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert counted.input_tokens == whole.usage.input_tokens
    assert moved


async def test_clients_that_leave_in_whatever_way_leave_nothing_of_what_moves(server: Server) -> None:
    """They close their stream, cancel their task, or lose patience, each with its own timing."""
    endless: dict[str, Any] = {"model": "tiny", "prompt": "On", "max_tokens": 6000, "extra_body": {"ignore_eos": True}}

    async def closes(client: openai.AsyncOpenAI, number: int) -> None:
        stream = await client.completions.create(**endless, stream=True, n=2, temperature=1)
        for _ in range(3 * number + 1):
            await stream.__anext__()
        await stream.close()

    async def cancels(client: openai.AsyncOpenAI, number: int) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2 * number + 0.1):
                await client.responses.create(model="tiny", input="On", extra_body={"ignore_eos": True})

    async def loses_patience(client: openai.AsyncOpenAI, number: int) -> None:
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.2 * number + 0.1, max_retries=1).completions.create(**endless)

    async with client_of(server) as client, everything_moves(server) as moved:
        leaving = (leaves(client, number) for leaves in (closes, cancels, loses_patience) for number in range(5))
        await asyncio.gather(*leaving)
        await asyncio.to_thread(server.wait_until_quiet)
    assert moved
