"""The thread that waits until the server answers."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llumnix.cluster import health
from llumnix.cluster.health import HealthWatch, ServerAddress

pytestmark = pytest.mark.io

WAIT_S = 10.0


def test_answer_that_comes_when_the_launcher_is_ending_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would be told to is closed by then."""
    asked, answer = threading.Event(), threading.Event()

    def healthy(_: ServerAddress) -> bool:
        asked.set()
        return answer.wait(WAIT_S)

    monkeypatch.setattr(ServerAddress, "healthy", healthy)
    told: list[str] = []
    watch = HealthWatch(ServerAddress("127.0.0.1", 1), lambda: told.append("it answers"))
    watch.start()
    assert asked.wait(WAIT_S)
    watch.stop()
    answer.set()
    watch._thread.join(WAIT_S)
    assert told == []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Clients that it refuses are what this is for."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its key; of an authority that nobody trusts: itself."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path)]
    made = path.with_name("certificate.pem")
    words = ["openssl", "req", "-x509", *key, "-days", "2", "-subj", "/CN=127.0.0.1", "-out", str(made)]
    subprocess.run(words, check=True, capture_output=True)
    path.write_text(path.read_text() + made.read_text())
    return path


def tls(certificate: Path, newest: ssl.TLSVersion, wanted: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    context.verify_mode = wanted
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    return context


@contextlib.contextmanager
def answering(context: ssl.SSLContext) -> Iterator[int]:
    """Whom it lets in gets 503."""
    with Quiet(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_server_that_wants_a_certificate_of_us_is_known_to_serve(certificate: Path, newest: ssl.TLSVersion) -> None:
    told = threading.Event()
    with answering(tls(certificate, newest, ssl.CERT_REQUIRED)) as port:
        watch = HealthWatch(ServerAddress("127.0.0.1", port, tls=True, client_certificates=True), told.set)
        watch.start()
        assert told.wait(WAIT_S)
        watch.stop()
        assert not ServerAddress("127.0.0.1", port, tls=True).healthy(), "there it would be another fault"


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_front_end_that_wants_a_certificate_of_us_only_hangs_up(
    certificate: Path, newest: ssl.TLSVersion
) -> None:
    """asyncio, which front ends serve with, sends no alert."""
    context = tls(certificate, newest, ssl.CERT_REQUIRED)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(ServerAddress("127.0.0.1", port, tls=True, client_certificates=True).healthy)
        assert not await asyncio.to_thread(ServerAddress("127.0.0.1", port, tls=True).healthy)


def test_connection_that_nobody_has_taken_yet_is_not_taken_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is open before there is a front end."""
    monkeypatch.setattr(health, "_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert not ServerAddress("127.0.0.1", port, tls=True, client_certificates=True).healthy()


def test_server_that_answers_that_it_is_not_ready_is_not_taken_to_serve(certificate: Path) -> None:
    """Also where certificates are wanted."""
    with answering(tls(certificate, ssl.TLSVersion.TLSv1_3, ssl.CERT_OPTIONAL)) as port:
        assert not ServerAddress("127.0.0.1", port, tls=True, client_certificates=True).healthy()


def test_port_at_which_nobody_speaks_yet_is_not_taken_to_serve() -> None:
    assert not ServerAddress("127.0.0.1", 1, tls=True, client_certificates=True).healthy()
