"""Where the server listens, and how the admin port does: nowhere wider, and no less guarded, than the main one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import logging
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from llumnix import tiny_model
from llumnix.cluster.preflight import why_taken
from llumnix.errors import UsageError

pytest.importorskip("vllm")

from admin_board import Board
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from vllm.entrypoints.launchers import launcher

from llumnix.engine.vllm import boot
from llumnix.engine.vllm.boot import VllmSetup
from llumnix.engine.vllm.front_end import serve
from llumnix.engine.vllm.front_end.serve import _serve_admin

ADMIN_TLS = {
    "ssl_ca_certs": None,
    "ssl_cert_reqs": int(ssl.CERT_NONE),
    "ssl_ciphers": "TLSv1",
    "enable_ssl_refresh": False,
}


def setup(**flags: Any) -> VllmSetup:
    return VllmSetup(
        argparse.Namespace(**{"host": None, "uds": None, "port": 8000, **flags}), None, memoryview(b""), memoryview(b"")
    )


def test_admin_port_beside_a_unix_socket_is_of_this_machine_alone() -> None:
    assert setup(uds="/run/llm.sock").host == "127.0.0.1"
    assert setup(uds="/run/llm.sock", host="192.0.2.7").host == "192.0.2.7"
    assert setup().host == "0.0.0.0", "vLLM's own default"


@pytest.fixture
def binds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM's `setup_server`, without what else it checks and leaves open."""

    def bind(args: argparse.Namespace, reuse_port: bool) -> tuple[str, socket.socket]:
        bound = socket.socket(socket.AF_UNIX if args.uds else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(args.uds or ("127.0.0.1", args.port))
        except OSError:
            bound.close()
            raise
        return "", bound

    monkeypatch.setattr(launcher, "setup_server", bind)


@pytest.mark.usefixtures("binds")
def test_unix_socket_of_a_killed_server_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "llm.sock")
    first = boot.listen(setup(uds=path))
    for begin in (lambda: None, first.listen):
        begin()  # type: ignore[no-untyped-call]
        with pytest.raises(UsageError):
            boot.listen(setup(uds=path))
    first.close()
    assert stat.S_ISSOCK(Path(path).stat().st_mode), "left behind"
    with boot.listen(setup(uds=path)) as second:
        assert second.family == socket.AF_UNIX
    Path(path).unlink()
    Path(path).write_text("precious")
    with pytest.raises(UsageError):
        boot.listen(setup(uds=path))
    assert Path(path).read_text() == "precious"


@pytest.mark.usefixtures("binds")
def test_unix_sockets_of_others_may_be_named_as_they_like(tmp_path: Path) -> None:
    path = str(tmp_path / "two words.sock")
    with socket.socket(socket.AF_UNIX) as strange:
        strange.bind(os.fsencode(tmp_path) + b"/\xff\x85")
        with boot.listen(setup(uds=path)), pytest.raises(UsageError):
            boot.listen(setup(uds=path))
        boot.listen(setup(uds=path)).close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.usefixtures("binds")
def test_port_is_taken_from_the_moment_when_it_is_bound() -> None:
    """It listens only when there is an instance, some minutes later."""
    port = free_port()
    with boot.listen(setup(port=port)):
        assert why_taken("127.0.0.1", port) == "address already in use"
        with pytest.raises(UsageError, match=f"^Port {port} on 0.0.0.0 cannot be used: Address already in use"):
            boot.listen(setup(port=port))


@pytest.mark.usefixtures("binds")
async def test_port_on_which_a_server_before_has_left_connections_is_listened_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as before:
        port = before.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = before.accept()
        accepted.close()  # the side that closes first waits for late packets
        client.close()
    listened: list[int] = []

    async def serve_http(_app: Any, *, sock: socket.socket, **_: Any) -> Any:
        sock.listen()
        listened.append(sock.getsockname()[1])
        return asyncio.sleep(0)

    monkeypatch.setattr(launcher, "serve_http", serve_http)
    monkeypatch.setattr("vllm.entrypoints.launchers.utils.server_utils.get_uvicorn_log_config", lambda _: None)
    with boot.listen(setup(port=port)) as sock:
        await serve._serve_http(AnyFlags(), None, sock, None)  # type: ignore[arg-type]
    assert listened == [port]


class AnyFlags(argparse.Namespace):
    def __getattr__(self, _name: str) -> None:
        return None


def test_front_ends_that_do_not_serve_yet_keep_no_connection_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has more connections than another leaves a new one to that, for 5 ms."""
    monkeypatch.setattr(os, "environ", {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    monkeypatch.setattr("vllm.envs.enable_envs_cache", lambda: None)
    monkeypatch.setattr("uvloop.run", lambda served: served.close())
    prepared = boot.prepare(["--enforce-eager", "--dtype=float32"], str(tiny_model.ensure()))
    prepared.connections[0], prepared.connections[1] = 2, 5
    book = SimpleNamespace(front_ends=3)
    boot.run_front_end(prepared, SimpleNamespace(index=0, book=book), None)  # type: ignore[arg-type]
    serves = launcher.NoSignalServer(None, (prepared.connections[:3], 1))  # type: ignore[arg-type]
    assert serves._least_loaded(), "the first has died and starts again, the third starts"


@pytest.mark.usefixtures("binds")
def test_unix_socket_that_cannot_be_bound_is_told_by_its_name(tmp_path: Path) -> None:
    path = str(tmp_path / "no" / "llm.sock")
    with pytest.raises(UsageError, match=f"^The socket {path} cannot be used: No such file or directory"):
        boot.listen(setup(uds=path))


@pytest.mark.parametrize(("words", "threads"), [("4", 4), ("4,2", 4), ("", 1), ("0", 1), ("many", 1)])
def test_threads_of_an_instance_are_what_openmp_reads(words: str, threads: int) -> None:
    assert boot.threads_of(words) == threads


def certificate(folder: Path) -> tuple[str, str]:
    """A key and a certificate of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    tomorrow = now + datetime.timedelta(days=1)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, tomorrow)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "key.pem", folder / "cert.pem"
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    paths[0].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    paths[1].write_bytes(signed.public_bytes(pem))
    return str(paths[0]), str(paths[1])


@contextlib.asynccontextmanager
async def admin_port(**flags: Any) -> AsyncIterator[int]:
    args = argparse.Namespace(**{"api_key": ["sesame"], "uvicorn_log_level": "warning", **vars(setup(**flags).args)})
    sock = socket.create_server(("127.0.0.1", 0))
    served = asyncio.create_task(_serve_admin(args, Board(), None, sock))  # type: ignore[arg-type]
    yield sock.getsockname()[1]
    served.cancel()
    await asyncio.gather(served, return_exceptions=True)


async def test_admin_port_speaks_tls_when_the_main_one_does(tmp_path: Path) -> None:
    key, signed = certificate(tmp_path)
    async with admin_port(ssl_keyfile=key, ssl_certfile=signed, **ADMIN_TLS) as port:
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=signed)) as client:
            answer = await client.get(
                f"https://127.0.0.1:{port}/llumnix/v1/requests", headers={"Authorization": "Bearer sesame"}
            )
            assert answer.status_code == 200
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://127.0.0.1:{port}/llumnix/v1/requests")


async def test_admin_port_wants_the_certificate_of_clients_when_the_main_one_does(tmp_path: Path) -> None:
    key, signed = certificate(tmp_path)
    mutual = {**ADMIN_TLS, "ssl_ca_certs": signed, "ssl_cert_reqs": int(ssl.CERT_REQUIRED)}
    async with admin_port(ssl_keyfile=key, ssl_certfile=signed, **mutual) as port:
        stranger, friend = (ssl.create_default_context(cafile=signed) for _ in range(2))
        friend.load_cert_chain(signed, key)
        url = f"https://127.0.0.1:{port}/llumnix/v1/requests"
        async with httpx.AsyncClient(verify=friend, headers={"Authorization": "Bearer sesame"}) as client:
            assert (await client.get(url)).status_code == 200
        async with httpx.AsyncClient(verify=stranger) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(url)


async def test_admin_port_refuses_in_the_shape_of_the_main_one_and_says_when_to_come_back() -> None:
    plain = dict.fromkeys(("ssl_keyfile", "ssl_certfile"))
    async with admin_port(**plain, **ADMIN_TLS) as port:
        headers = {"Authorization": "Bearer sesame"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/llumnix/v1", headers=headers) as client:
            unknown, wrong, silent = [
                await client.request(*asked) for asked in (("GET", "/nodes"), ("PUT", "/drains"), ("GET", "/scaling"))
            ]
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
        assert (wrong.status_code, wrong.json()["error"]["message"]) == (405, "Method Not Allowed.")
        assert (silent.status_code, silent.headers["retry-after"]) == (503, "1")


async def test_admin_port_leaves_to_the_main_one_how_this_process_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With lines of JSON, uvicorn's were text, or nowhere, once it had set them up for itself."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]
    for logger in loggers:
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "propagate", True)
    async with admin_port(ssl_keyfile=None, ssl_certfile=None, **ADMIN_TLS) as port, httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/llumnix/v1/requests")).status_code == 401
        assert [(logger.propagate, logger.handlers) for logger in loggers] == [(True, [])] * 3
