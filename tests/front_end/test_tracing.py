"""Traces of requests, made of stories and read back from memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import msgspec
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from llumnix.control.orders import MoveOutcome
from llumnix.engine.vllm.front_end.tracing import Tracing
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.policy.dispatch import DispatchReason, Judged
from llumnix.types import InstanceId
from move_outcomes import outcome

A, B = InstanceId("i0"), InstanceId("i1")
CLIENT_TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PAGE = Path(__file__).parent.parent.parent / "docs" / "use" / "tracing.md"


class Traced:
    """A front end whose clock stands at 1,000 s since 1970 when its own stands at 0."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.tracing = Tracing(0, provider)
        self.stories = Stories(Journal("f0", since_s=1000.0))
        self.stories.listener = self.tracing.ended

    def request(self, headers: dict[str, str] | None = None) -> EngineCoreRequest:
        """It arrived at 10, by the front end's clock."""
        made = EngineCoreRequest(
            request_id="cmpl-1-0-7f",
            external_req_id="cmpl-1-0",
            prompt_token_ids=[1, 2, 3],
            mm_features=None,
            sampling_params=SamplingParams(),
            pooling_params=None,
            arrival_time=1010.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            trace_headers=headers,
        )
        self.tracing.began(made)
        return made

    def spans(self) -> dict[str, list[ReadableSpan]]:
        found: dict[str, list[ReadableSpan]] = {}
        for span in self._memory.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found


def reason(chosen: InstanceId) -> DispatchReason:
    return DispatchReason("freeness", (Judged(chosen, 200.5), Judged(InstanceId("i7"), 3.25)), 2)


def moved(source: str, target: str) -> MoveOutcome:
    made = outcome(source, target)
    return msgspec.structs.replace(made, figures=msgspec.structs.replace(made.figures, copy_s=0.4, handover_s=0.1))


def live_through_it_all(traced: Traced, headers: dict[str, str] | None = None) -> EngineCoreRequest:
    request = traced.request(headers)
    story = traced.stories.began(10.0, "cmpl-1", request.request_id, 3)
    story.dispatched(10.5, reason(A))
    story.scheduled(11.0)
    story.token(12.0)
    story.moved(14.0, moved("i0", "i1"), 0.02)
    story.stayed(15.0, outcome("i1", "i0", why_not="refused: no room"))
    story.moved(16.0, moved("i1", "i0"), None)
    story.preempted(17.0)
    story.scheduled(17.5)
    story.token(18.0)
    story.parked(19.0, "no instance is left", 18.5)
    story.replayed(20.0, reason(B), "i0 was lost", 7, 18.5)
    story.token(21.0)
    story.ended(25.0, "length", 40)
    traced.stories.over(story)
    return request


def test_all_of_a_request_is_one_trace_below_the_clients_span() -> None:
    traced = Traced()
    request = live_through_it_all(traced, {"traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"})
    spans = traced.spans()
    (root,) = spans.pop("llumnix.request")
    assert root.context is not None
    assert root.parent is not None
    assert f"{root.context.trace_id:032x}" == CLIENT_TRACE
    assert f"{root.parent.span_id:016x}" == CLIENT_SPAN
    assert request.trace_headers == {"traceparent": f"00-{CLIENT_TRACE}-{root.context.span_id:016x}-01"}, (
        "what vLLM makes of it, wherever it is then, is below ours"
    )
    assert {name: len(found) for name, found in spans.items()} == {
        "llumnix.dispatch": 1,
        "llumnix.migration": 3,
        "llumnix.preemption": 1,
        "llumnix.parked": 1,
        "llumnix.replay": 1,
    }
    for span in (span for found in spans.values() for span in found):
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        assert span.context is not None
        assert span.context.trace_id == root.context.trace_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time  # type: ignore[operator]
    assert (root.start_time, root.end_time) == (1010 * 10**9, 1025 * 10**9)
    assert len(traced.tracing) == 0


def test_spans_say_what_happened() -> None:
    traced = Traced()
    live_through_it_all(traced)
    spans = traced.spans()
    first, stayed, _ = (dict(span.attributes or {}) for span in spans["llumnix.migration"])
    assert first["llumnix.source"] == "i0"
    assert (first["llumnix.target"], first["llumnix.outcome"], first["llumnix.downtime_ms"]) == ("i1", "moved", 20.0)
    assert (stayed["llumnix.outcome"], stayed["llumnix.why_not"]) == ("stayed", "refused: no room")
    assert first["llumnix.cause"] == stayed["llumnix.cause"] == "balance"
    migration = spans["llumnix.migration"][0]
    assert (migration.end_time or 0) - (migration.start_time or 0) == 500_000_000, "copy and hand-over"
    dispatch = dict(spans["llumnix.dispatch"][0].attributes or {})
    assert dispatch["llumnix.candidates"] == ("i0 200.5", "i7 3.25")
    root = dict(spans["llumnix.request"][0].attributes or {})
    assert (root["gen_ai.request.id"], root["gen_ai.usage.completion_tokens"]) == ("cmpl-1", 40)
    parts = [value for name, value in root.items() if name.startswith("llumnix.spent.") and isinstance(value, float)]
    assert sum(parts) == pytest.approx(15.0), "all of its time is somewhere"


def test_without_headers_a_request_is_a_trace_of_its_own() -> None:
    traced = Traced()
    live_through_it_all(traced)
    live_through_it_all(traced)
    roots = traced.spans()["llumnix.request"]
    assert all(root.parent is None for root in roots)
    assert len({root.context.trace_id for root in roots if root.context}) == 2


def test_one_that_is_not_taken_says_why_and_is_not_remembered() -> None:
    traced = Traced()
    traced.tracing.refused(traced.request().request_id, "No instance is running.")
    (root,) = traced.spans()["llumnix.request"]
    assert (root.status.is_ok, root.status.description) == (False, "No instance is running.")
    assert len(traced.tracing) == 0
    traced.tracing.refused("cmpl-1-0-7f", "again")
    assert len(traced.spans()["llumnix.request"]) == 1


def test_one_that_fails_is_told_as_a_failure() -> None:
    traced = Traced()
    story = traced.stories.began(10.0, "cmpl-1", traced.request().request_id, 3)
    story.dispatched(10.5, reason(A))
    story.ended(11.0, "error", 0, "the stream cannot be continued exactly")
    traced.stories.over(story)
    assert traced.spans()["llumnix.request"][0].status.description == "the stream cannot be continued exactly"


def test_every_span_and_attribute_is_explained_and_nothing_else_is() -> None:
    traced = Traced()
    live_through_it_all(traced)
    told = {name: {key for span in found for key in span.attributes or {}} for name, found in traced.spans().items()}
    rows = re.findall(r"^\| `(llumnix\.\w+)` \|[^|]*\| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    explained = {name: set(re.findall(r"`([\w.]+)`", attributes)) for name, attributes in rows}
    assert explained == told
