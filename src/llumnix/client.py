"""Client of the admin API of a running server; every failure is a sentence."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from llumnix.api import bodies
from llumnix.api.routes import PREFIX
from llumnix.control.class_counts import ClassRow
from llumnix.control.scheduler_events import DrainReport
from llumnix.errors import ServerRefused, ServerSilent, UsageError
from llumnix.hosts import bracketed, is_loopback
from llumnix.remote import WANTS_KEY, check_key, in_a_sentence, no_answer, server_url, unix_socket
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, Role

ASK_TIMEOUT_S = 30.0
MOVE_TIMEOUT_S = 120.0
"""A move is answered when it is over: this is longer than the server lets one take (its admin routes)."""

_MOST_AT_ONCE = 64
"""Instances that the server starts by one order."""

_OF_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_OF_PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Variables."""

AnswerT = TypeVar("AnswerT")


class AdminClient:
    """One server. Every method raises UsageError when the server knows no such thing, ServerSilent when it or its
    scheduler does not answer, else ServerRefused."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = ASK_TIMEOUT_S) -> None:
        path = unix_socket(url)
        self._url = url if path else server_url(url)
        check_key(api_key)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        with reading_environment():
            way: dict[str, Any] = {"base_url": self._url, "mounts": past_proxies(self._url)}
            if path:
                way = {"base_url": "http://localhost", "transport": httpx.HTTPTransport(uds=path)}
            self._http = httpx.Client(headers=headers, timeout=timeout_s, **way)

    def close(self) -> None:
        self._http.close()

    def status(self) -> bodies.InstancesAnswer:
        """The scheduler and every instance with its load."""
        return self._ask("GET", "/instances", bodies.InstancesAnswer)

    def instances(self) -> list[bodies.InstanceRow]:
        return self.status().instances

    def requests(self) -> list[bodies.ClientRequest]:
        """Every request that runs or waits."""
        return self._ask("GET", "/requests", bodies.RequestsAnswer).requests

    def moves(self, limit: int) -> list[MigrationRecord]:
        """The last attempts to move a request, newest first."""
        return self._ask("GET", f"/migrations?limit={limit}", bodies.MigrationsAnswer).migrations

    def classes(self) -> list[ClassRow]:
        """What becomes of the requests of each class and tenant."""
        return self._ask("GET", "/classes", bodies.ClassesAnswer).classes

    def story(self, request: str) -> bodies.StoryAnswer:
        """What happened to a request, also one that has ended."""
        return self._ask("GET", f"/requests/{_part(request)}/story", bodies.StoryAnswer)

    def journal(self, limit: int, kinds: Sequence[str], instance: str | None = None) -> bodies.JournalAnswer:
        """What happened last."""
        params = {"limit": str(limit)}
        params |= {"kind": ",".join(kinds)} if kinds else {}
        params |= {} if instance is None else {"instance": instance}
        return self._ask("GET", "/journal", bodies.JournalAnswer, params=params)

    def why_not(self) -> bodies.WhyNotAnswer:
        """Why nothing moves just now, and no instance is started."""
        return self._ask("GET", "/why-not", bodies.WhyNotAnswer)

    def migrate(self, request: str, target: str | None) -> bodies.MovedAnswer:
        """Moves one request, without a target wherever it had best go; returns how it went, after the move."""
        order = bodies.MigrateBody(request_id=request, target=target)
        return self._ask("POST", "/migrations", bodies.MovedAnswer, order, timeout=MOVE_TIMEOUT_S)

    def drain(self, instance: str, keep: bool, timeout_s: float | None = None, *, force: bool = False) -> None:
        """Begins to empty an instance by migration; it then stops, unless `keep`. What is left after `timeout_s` is
        replayed elsewhere. The last one that takes requests is drained with `force` only."""
        params = {"keep": "true"} if keep else {}
        params |= {"force": "true"} if force else {}
        params |= {} if timeout_s is None else {"timeout_s": str(timeout_s)}
        self._ask("POST", f"/instances/{_part(instance)}/drain", bodies.StateAnswer, params=params)

    def undrain(self, instance: str) -> None:
        """Lets a drained or draining instance take requests again."""
        self._ask("POST", f"/instances/{_part(instance)}/undrain", bodies.StateAnswer)

    def give_role(self, instance: str, role: Role) -> None:
        """Has an instance preferred for prompts, tokens, or both."""
        body = bodies.RoleBody(role=role)
        self._ask("POST", f"/instances/{_part(instance)}/role", bodies.RoleAnswer, body)

    def drains(self) -> list[DrainReport]:
        """A report of every drain, whether it has ended or not."""
        return self._ask("GET", "/drains", bodies.DrainsAnswer).drains

    def scaling(self) -> bodies.ScalingRow:
        """Size of the cluster, and what auto-scaling makes of it."""
        return self._ask("GET", "/scaling", bodies.ScalingRow)

    def start(self, count: int, timeout_s: float = ASK_TIMEOUT_S, *, replaces: InstanceId | None = None) -> None:
        """Begins to start `count` more instances, by as many orders as it takes; or one with the role of another, which
        it `replaces`. Raises ServerRefused when they are not all answered in time; what was ordered until then stays
        ordered."""
        deadline_s = time.monotonic() + timeout_s
        for ordered in range(0, count, _MOST_AT_ONCE):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise ServerRefused(f"The server did not take all orders within {timeout_s:g} s; {ordered} may start.")
            body = bodies.StartBody(count=min(count - ordered, _MOST_AT_ONCE), replaces=replaces)
            self._ask("POST", "/instances", bodies.StartedAnswer, body, timeout=left_s)

    def _ask(
        self, method: str, path: str, kind: type[AnswerT], body: msgspec.Struct | None = None, **options: Any
    ) -> AnswerT:
        if body is not None:
            options |= {"content": msgspec.json.encode(body), "headers": {"content-type": "application/json"}}
        try:
            response = self._http.request(method, PREFIX + path, **options)
        except httpx.HTTPError as error:
            raise unreachable(self._url, error) from error
        if response.is_success:
            try:
                return msgspec.json.decode(response.content, type=kind)
            except ValueError as error:
                raise self._stranger() from error
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise UsageError(WANTS_KEY)
        reason = _reason(_json_object(response))
        if not reason and (response.status_code < httpx.codes.INTERNAL_SERVER_ERROR):
            raise self._stranger()
        if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND):
            raise UsageError(reason)
        refused = ServerSilent if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else ServerRefused
        raise refused(reason or f"The server at {self._url} failed: HTTP status {response.status_code}.")

    def _stranger(self) -> ServerRefused:
        return ServerRefused(f"The server at {self._url} is not Llumnix, or its admin routes have another port.")


@contextmanager
def reading_environment() -> Iterator[None]:
    """While a client of httpx is made, which reads variables. Raises UsageError for what it cannot use."""
    try:
        yield
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        names = _OF_CERTIFICATES if isinstance(error, OSError) else _OF_PROXIES
        found = " or ".join(name for name in os.environ if name.upper() in names) or "The environment"
        raise UsageError(f"{found} names what cannot be used: {in_a_sentence(error)}.") from error


def past_proxies(url: str) -> dict[str, None]:
    """`mounts` of a client of httpx: a server of this machine is asked without the proxy that leads out of it, and
    whose own loopback is another."""
    host = urlsplit(url).hostname or ""
    return {f"all://{bracketed(host)}": None} if is_loopback(host) else {}


def concurrent_client(url: str, api_key: str | None, timeout: float | httpx.Timeout) -> httpx.AsyncClient:
    """For many requests at a time to the server at `url`. Raises UsageError."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with reading_environment():
        mounts = past_proxies(url)
        return httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=timeout, mounts=mounts)


def unreachable(url: str, error: httpx.HTTPError) -> ServerRefused:
    """What to raise when a request to the server at `url` got no answer."""
    late = isinstance(error, httpx.TimeoutException)
    broken = isinstance(error, httpx.ProtocolError | httpx.ReadError | httpx.WriteError)
    return no_answer(url, error, late=late, broken=broken)


def _part(name: str) -> str:
    """As one part of a path."""
    return quote(name, safe="")


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _reason(body: dict[str, Any] | None) -> str:
    """The sentence in an error body: OpenAI's shape, or ours; empty if it has neither."""
    if body is None:
        return ""
    error = body.get("error")
    said = error.get("message") if isinstance(error, dict) else body.get("reason")
    return said if isinstance(said, str) else ""
