"""One trace for each sequence of a request, through moves and replays (`--otlp-traces-endpoint`).

vLLM makes a span when a request ends, `llm_request`, below the one that the request's `trace_headers` name
(vllm/v1/engine/output_processor.py, `do_tracing`); these travel with the request to every instance. So ours, below that
of the client, is named there before the request is sent. What is below ours is made of its story, when it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, assert_never

import msgspec
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from vllm.v1.engine import EngineCoreRequest

from llumnix.engine.vllm.front_end.client_ids import client_visible_id
from llumnix.engine.vllm.front_end.session import client_id_of
from llumnix.journal.entries import (
    DispatchNoted,
    DrainNoted,
    EndNoted,
    FirstTokenNoted,
    InstanceNoted,
    JournalEntry,
    MoveNoted,
    ParkingNoted,
    PreemptionNoted,
    RefusalNoted,
    ReplayNoted,
    RoleNoted,
    RoundNoted,
    ScalingNoted,
    StayNoted,
)
from llumnix.journal.story import Story

_FLUSH_TIMEOUT_MS = 2000
_W3C = TraceContextTextMapPropagator()


class Tracing:
    """Of one front end; on its event loop. Made when vLLM has set the provider of tracers (`AsyncLLM.__init__`)."""

    def __init__(self, front_end: int, provider: trace.TracerProvider | None = None) -> None:
        """`provider`: another one than vLLM's."""
        self._provider = provider or trace.get_tracer_provider()
        self._tracer = self._provider.get_tracer("llumnix")
        self._front_end = front_end
        self._roots: dict[str, Span] = {}  # of those that run, by their first ids inside the engines

    def __len__(self) -> int:
        return len(self._roots)

    @contextmanager
    def asked(self, session_of: Callable[[str], object], request: EngineCoreRequest) -> Iterator[None]:
        """Around what takes it to an instance, or does not. `session_of`: None if no stream of it is open then."""
        self.began(request)
        try:
            yield
        except BaseException as error:
            self.refused(request.request_id, str(error))
            raise
        if session_of(request.request_id) is None:
            self.refused(request.request_id, "aborted")

    def began(self, request: EngineCoreRequest) -> None:
        """Before it is sent: its headers go with it. `ended` or `refused` follows."""
        root = self._tracer.start_span(
            "llumnix.request",
            context=_W3C.extract(request.trace_headers or {}),
            kind=SpanKind.SERVER,
            start_time=_ns(request.arrival_time),
            attributes={
                "gen_ai.request.id": client_visible_id(client_id_of(request)),
                "llumnix.front_end": self._front_end,
            },
        )
        headers: dict[str, str] = {}
        _W3C.inject(headers, trace.set_span_in_context(root))
        request.trace_headers = headers
        self._roots[request.request_id] = root

    def refused(self, request_id: str, why: str) -> None:
        """Nothing happens to one that has `ended`."""
        if (root := self._roots.pop(request_id, None)) is not None:
            root.set_status(StatusCode.ERROR, why)
            root.end()

    def ended(self, story: Story) -> None:
        if (root := self._roots.pop(story.sequence, None)) is None:
            return
        inside, end = trace.set_span_in_context(root), story.entries[-1]
        for entry in story.entries:
            if (told := _span_of(entry)) is not None:
                name, lasted_s, attributes = told
                began_s = min(entry.at_s, max(story.arrived_at_s, entry.at_s - lasted_s))
                span = self._tracer.start_span(name, context=inside, start_time=_ns(began_s), attributes=attributes)
                span.end(_ns(entry.at_s))
        if isinstance(end.what, EndNoted):
            root.set_attributes(_of_end(end.what))
            if end.what.outcome == "error":
                root.set_status(StatusCode.ERROR, end.why)
        root.end(_ns(end.at_s))

    def close(self) -> None:
        """What was made goes out, if somebody takes it in time: no exit handler runs in this process."""
        flush = getattr(self._provider, "force_flush", None)
        if flush is not None:
            flush(_FLUSH_TIMEOUT_MS)


def _ns(at_s: float) -> int:
    return int(at_s * 1e9)


def _of_end(end: EndNoted) -> dict[str, Any]:
    spent = {f"llumnix.spent.{part}": value for part, value in msgspec.structs.asdict(end.spent).items()}
    return spent | {
        "llumnix.outcome": end.outcome,
        "gen_ai.usage.prompt_tokens": end.prompt_tokens,
        "gen_ai.usage.completion_tokens": end.output_tokens,
    }


def _span_of(entry: JournalEntry) -> tuple[str, float, Mapping[str, Any]] | None:
    """Its name, for how many seconds it lasted until then, and what it says; None: it is none."""
    here = {} if entry.instance is None else {"llumnix.instance": entry.instance}
    match entry.what:
        case DispatchNoted() as dispatch:
            weighed = [f"{each.instance} {each.number:.4g}" for each in dispatch.reason.candidates]
            says = {"llumnix.reason": str(dispatch.reason), "llumnix.candidates": weighed}
            return "llumnix.dispatch", 0.0, here | says
        case MoveNoted() as move:
            lasted_s = (move.copy_ms + move.handover_ms) / 1e3
            attributes = _attempt(entry, move) | {
                "llumnix.reason": entry.why,
                "llumnix.stages": move.stages,
                "llumnix.bytes": move.bytes,
                "llumnix.handover_ms": move.handover_ms,
            }
            known = {} if move.downtime_ms is None else {"llumnix.downtime_ms": move.downtime_ms}
            return "llumnix.migration", lasted_s, attributes | known
        case StayNoted() as stay:
            attributes = _attempt(entry, stay) | {"llumnix.reason": stay.reason}
            return "llumnix.migration", 0.0, attributes | {"llumnix.why_not": entry.why}
        case ReplayNoted() as replay:
            lost = {"llumnix.why": entry.why, "llumnix.delivered_tokens": replay.delivered_tokens}
            return "llumnix.replay", 0.0, here | lost
        case PreemptionNoted() as preemption:
            return "llumnix.preemption", preemption.lost_s, here | {"llumnix.waited_s": preemption.waited_s}
        case ParkingNoted():
            return "llumnix.parked", 0.0, {"llumnix.why": entry.why}
        case RefusalNoted() | FirstTokenNoted() | EndNoted():
            return None
        case InstanceNoted() | RoundNoted() | ScalingNoted() | RoleNoted() | DrainNoted():
            raise AssertionError(f"{entry.kind} is of no request")
        case _:
            assert_never(entry.what)


def _attempt(entry: JournalEntry, what: MoveNoted | StayNoted) -> dict[str, Any]:
    source = {} if entry.instance is None else {"llumnix.source": entry.instance}
    return source | {"llumnix.target": what.target, "llumnix.outcome": entry.kind, "llumnix.cause": what.cause}
