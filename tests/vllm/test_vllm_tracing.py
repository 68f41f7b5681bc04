"""A request that moves twice and is replayed once is one trace: a collector of our own gets it from a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest

pytest.importorskip("opentelemetry.proto")

from frame.admin import Admin
from frame.checked import Server
from frame.server import wait_for
from frame.stream import Streaming, open_session
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TOKENS = 1500


class Collector:
    """Takes traces over HTTP, as Jaeger and Tempo do."""

    def __init__(self) -> None:
        spans = self.spans = list[Span]()

        class Take(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def trace(self) -> dict[str, list[Span]]:
        found: dict[str, list[Span]] = {}
        for span in list(self.spans):
            if span.trace_id.hex() == TRACE:
                found.setdefault(span.name, []).append(span)
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def traced(collector: Collector, tmp_path: Path) -> Iterator[Server]:
    environment = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    server = Server(
        tmp_path, "--no-migration", "--otlp-traces-endpoint", collector.url, environment=environment, recorded=False
    )
    yield server
    server.stop()


async def moved_twice_and_replayed(server: Server) -> None:
    body: dict[str, Any] = {"prompt": "one two", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    async with open_session(server.url) as plain, aiohttp.ClientSession(server.url, headers=headers) as session:
        stream = Streaming(session, body, name="traced")
        await stream.reaches(10)
        admin = Admin(plain)
        home = str(await admin.where(stream.id))
        away = next(instance for instance in await admin.running() if instance != home)
        for target in (away, home):
            assert (await admin.migrate(stream.id, target))[0] == 200
            await stream.reaches(stream.output.tokens + 5)
        os.kill(server.instance(home)["pid"], signal.SIGKILL)
        output = await stream
        assert (output.tokens, output.error) == (TOKENS, "")


def test_a_request_that_moved_twice_and_was_replayed_once_is_one_trace(traced: Server, collector: Collector) -> None:
    asyncio.run(moved_twice_and_replayed(traced))
    wait_for(lambda: {"llumnix.request", "llm_request"} <= collector.trace().keys(), "both ends of the trace")
    spans = collector.trace()
    expected = {
        "llumnix.request": 1,
        "llumnix.dispatch": 1,
        "llumnix.migration": 2,
        "llumnix.replay": 1,
        "llm_request": 1,
    }
    assert {name: len(found) for name, found in spans.items()} == expected
    (root,) = spans.pop("llumnix.request")
    assert root.parent_span_id.hex() == PARENT
    slack_ns = 5_000_000_000  # vLLM ends its span a moment after ours
    for span in (span for found in spans.values() for span in found):
        assert span.parent_span_id == root.span_id, f"{span.name} is elsewhere in the tree"
        assert root.start_time_unix_nano - slack_ns <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano + slack_ns
    first, second = sorted(spans["llumnix.migration"], key=lambda span: span.end_time_unix_nano)
    (replay,) = spans["llumnix.replay"]
    assert first.end_time_unix_nano < second.end_time_unix_nano < replay.start_time_unix_nano
