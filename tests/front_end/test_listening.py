"""Where the server listens, and how the admin port does: nowhere wider, and no less guarded, than the main one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest

from llumnix.errors import UsageError

pytest.importorskip("vllm")

from admin_board import Board
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from vllm.entrypoints.launchers import launcher

from llumnix.engine.vllm import boot
from llumnix.engine.vllm.boot import VllmSetup
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


def bind(path: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(path)
    except OSError:
        bound.close()
        raise
    return bound


def test_unix_socket_of_a_killed_server_is_replaced_and_one_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "setup_server", lambda args, reuse_port: ("", bind(args.uds)))
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
