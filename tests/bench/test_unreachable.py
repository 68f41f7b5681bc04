"""Every command that talks to a server, against real sockets of others: one sentence and no traceback."""

from __future__ import annotations

import http.server
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llumnix.cli import COMMANDS, main

WORDS = {
    "status": [],
    "requests": [],
    "moves": [],
    "migrate": ["cmpl-1", "i1"],
    "drain": ["i0"],
    "undrain": ["i0"],
    "start": [],
    "scale": ["3"],
    "restart": ["--rolling"],
    "bench": ["--workload", "S-S?requests=1", "--no-figures"],
    "profile": [],
    "top": [],
    "explain": ["cmpl-1"],
    "classes": [],
    "role": ["i0", "decode"],
}
HERE_ONLY = {"serve", "simulate", "reproduce", "doctor", "completion", "man", "record", "whatif"}


class Handler(http.server.BaseHTTPRequestHandler):
    """Says the same to everybody."""

    status, kind, body = 200, "application/json", b"{}"

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are what this is for."""


@contextmanager
def answering(status: int, kind: str, body: bytes, certificate: Path | None = None) -> Iterator[int]:
    handler = type("Answer", (Handler,), {"status": status, "kind": kind, "body": body})
    with Quiet(("127.0.0.1", 0), handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, by an authority that nobody trusts: itself."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path)]
    made = path.with_name("certificate.pem")
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-days", "2", *names, "-out", str(made)], check=True, capture_output=True
    )
    path.write_text(path.read_text() + made.read_text())
    return path


def test_every_command_is_in_the_table() -> None:
    assert set(WORDS) | HERE_ONLY == set(COMMANDS)


def refused(name: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    out = ["--out", str(tmp_path / "out")] if name in ("bench", "profile") else []
    code = main([name, *WORDS[name], "--url", url, *out])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llumnix: ")]
    assert len(said) == 1
    return code, said[0]


@pytest.mark.parametrize("name", WORDS)
def test_nobody_listens(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, said = refused(name, url, tmp_path, capsys)
    assert (code, f"No server answers at {url}" in said) == (1, True)


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize(
    ("status", "kind", "body", "code"),
    [
        (401, "application/json", b'{"error": "Unauthorized"}', 2),
        (404, "application/json", b'{"detail": "Not Found"}', 1),
        (200, "text/html", b"<html>hello</html>", 1),
        (200, "application/json", b"[1]", 1),
        (502, "text/html", b"<html>Bad Gateway</html>", 1),
    ],
    ids=["no key", "another server", "a page", "another answer", "a proxy"],
)
def test_somebody_else_answers(
    name: str, status: int, kind: str, body: bytes, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status, kind, body) as port:
        said = refused(name, f"http://127.0.0.1:{port}", tmp_path, capsys)
    if name == "profile" and code == 1:
        assert said[0] in (1, 2)  # what it can be told by flags instead is bad use
    else:
        assert said[0] == code
    assert ("API key" in said[1]) == (status == 401)


@pytest.mark.parametrize("name", WORDS)
def test_address_has_the_wrong_scheme(
    name: str, certificate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(200, "application/json", b"{}") as port:
        code, said = refused(name, f"https://127.0.0.1:{port}", tmp_path, capsys)
        assert (code, "begin with http://?" in said) == (1, True), said
    with answering(200, "application/json", b"{}", certificate) as port:
        code, said = refused(name, f"http://127.0.0.1:{port}", tmp_path, capsys)
        assert (code, "begin with https://?" in said) == (1, True), said


@pytest.mark.parametrize("name", WORDS)
def test_certificate_of_a_private_authority_is_trusted_once_it_is_named(
    name: str,
    certificate: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering(401, "application/json", b"{}", certificate) as port:
        url = f"https://127.0.0.1:{port}"
        code, said = refused(name, url, tmp_path, capsys)
        assert (code, "SSL_CERT_FILE" in said) == (1, True), said
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        code, said = refused(name, url, tmp_path, capsys)
        assert (code, "API key" in said) == (2, True), said
