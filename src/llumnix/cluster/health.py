"""Waits, in a thread, until the server answers its users."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

from llumnix.cluster.nursery_messages import Ready
from llumnix.flags import ServeArguments, has_flag
from llumnix.hosts import bracketed

_INTERVAL_S = 0.1
_TIMEOUT_S = 5.0
_WANTS_CERTIFICATE = ("ALERT_CERTIFICATE_REQUIRED", "ALERT_HANDSHAKE_FAILURE")
"""How a server says so, if it does: in TLS 1.3, and before."""
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    host: str
    port: int
    tls: bool = False
    unix_socket: str | None = None
    client_certificates: bool = False
    """Whether it answers only who shows a certificate, which we have none of."""

    def __str__(self) -> str:
        """The URL that works on this machine."""
        if self.unix_socket is not None:
            return f"unix:{self.unix_socket}"
        return f"{'https' if self.tls else 'http'}://{bracketed(self._reachable_host)}:{self.port}"

    @property
    def _reachable_host(self) -> str:
        return _ANY_HOST.get(self.host, self.host)

    def healthy(self) -> bool:
        """Whether `GET /health` is answered with 200 within a few seconds; where clients need a certificate, whether it
        is refused for the lack of one: only what serves does that."""
        connection = self._connection()
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (ssl.SSLError, ConnectionResetError) as error:
            return self.client_certificates and _sent_away(error)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self.unix_socket is not None:
            return _UnixConnection(self.unix_socket)
        if self.tls:
            trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it is our own server; its name may be another one
            trusting.check_hostname = False
            trusting.verify_mode = ssl.CERT_NONE
            return http.client.HTTPSConnection(self._reachable_host, self.port, timeout=_TIMEOUT_S, context=trusting)
        return http.client.HTTPConnection(self._reachable_host, self.port, timeout=_TIMEOUT_S)


def address_of(arguments: ServeArguments, ready: Ready) -> ServerAddress:
    """Of the server that was told this, and is bound there."""
    return ServerAddress(
        host=ready.host,
        port=ready.port,
        tls=has_flag(arguments.engine_flags, "--ssl-certfile"),
        unix_socket=arguments.engine_flag("--uds"),
        client_certificates=arguments.engine_flag("--ssl-cert-reqs") == "2",  # ssl.CERT_REQUIRED
    )


def _sent_away(error: ssl.SSLError | ConnectionResetError) -> bool:
    """Whether a server took our connection and would not have us. Those of asyncio, as front ends are, only hang up: in
    TLS 1.3 after the handshake, before within it. Nobody takes connections before a front end serves."""
    if isinstance(error, ConnectionResetError | ssl.SSLEOFError):
        return True
    said = (error.reason or "").upper().replace(" ", "_")  # OpenSSL has written it in several ways
    return said.endswith(_WANTS_CERTIFICATE)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


class HealthWatch:
    """Calls `on_healthy` once, from its thread, when the address answers; not after `stop`."""

    def __init__(self, address: ServerAddress, on_healthy: Callable[[], None]) -> None:
        self._address = address
        self._on_healthy = on_healthy
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="health watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stop.set()

    def _watch(self) -> None:
        while not self._stop.is_set():
            if self._address.healthy():
                with self._lock:
                    if not self._stop.is_set():
                        self._on_healthy()
                return
            self._stop.wait(_INTERVAL_S)
