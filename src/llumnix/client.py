"""Client of the admin API of a running server: status, migrate, drain, rolling restart (contract: docs, HTTP API)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx

from llumnix.errors import LlumnixError, UsageError

DEFAULT_URL = "http://127.0.0.1:8000"

_POLL_S = 0.25
_GONE = ("stopped", "lost")


class ServerRefused(LlumnixError):
    """The server cannot be reached, or will not do it; `str(error)` is a sentence with its reason."""


class AdminClient:
    """One server. Every method raises UsageError when the server knows no such thing, else ServerRefused."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise UsageError(f"--url {url} is not an address: {error}.") from error
        self._url = url

    def close(self) -> None:
        self._http.close()

    def status(self) -> dict[str, Any]:
        """The scheduler and every instance with its load."""
        return self._ask("GET", "/llumnix/v1/instances")

    def migrate(self, request: str, target: str) -> dict[str, Any]:
        """Moves one request; returns how it went, after the move."""
        return self._ask("POST", "/llumnix/v1/migrations", json={"request_id": request, "target": target})

    def drain(self, instance: str, keep: bool, timeout_s: float | None = None) -> dict[str, Any]:
        """Begins to empty an instance by migration; it then stops, unless `keep`. What is left after `timeout_s` is
        replayed elsewhere."""
        path = f"/llumnix/v1/instances/{instance}/drain"
        params = ({"keep": "true"} if keep else {}) | ({} if timeout_s is None else {"timeout_s": str(timeout_s)})
        return self._ask("POST", path, params=params)

    def drains(self) -> list[dict[str, Any]]:
        """A report of every drain, whether it has ended or not."""
        reports: list[dict[str, Any]] = self._ask("GET", "/llumnix/v1/drains")["drains"]
        return reports

    def scaling(self) -> dict[str, Any]:
        """Size of the cluster, and what auto-scaling makes of it."""
        return self._ask("GET", "/llumnix/v1/scaling")

    def start(self, count: int) -> dict[str, Any]:
        """Begins to start `count` more instances."""
        return self._ask("POST", "/llumnix/v1/instances", json={"count": count})

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.UnsupportedProtocol as error:
            raise UsageError(f"--url {self._url} is not an address: it must begin with http:// or https://.") from error
        except httpx.TransportError as error:
            raise ServerRefused(f"No server answers at {self._url}: {error or type(error).__name__}.") from error
        body = _json_object(response)
        if response.is_success and body is not None:
            return body
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise UsageError("The server wants its API key; give it with --api-key.")
        if response.status_code == httpx.codes.NOT_FOUND and body is not None and "detail" in body:
            raise ServerRefused(f"The server at {self._url} is not Llumnix, or its admin routes have another port.")
        reason = _reason(body) or f"HTTP status {response.status_code}"
        if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND):
            raise UsageError(reason)
        raise ServerRefused(reason)


def restart_rolling(client: AdminClient, say: Callable[[str], None], timeout_s: float) -> None:
    """Replaces every instance, one after the other: a new one starts before an old one is emptied and stopped, so
    capacity never falls. In the end as many run as before, if auto-scaling is off. Raises ServerRefused when a step
    takes longer than `timeout_s`."""
    old = _running(client)
    if not old:
        raise ServerRefused("No instance is running, so there is nothing to restart.")
    for instance in old:
        before = {row["id"] for row in _instances(client)}
        client.start(1)
        new = _wait(partial(_new_running, client, before), "a new instance did not start", timeout_s)
        say(f"{new} runs; emptying {instance}")
        client.drain(instance, keep=False)
        _wait(partial(_is_gone, client, instance), f"{instance} did not become empty", timeout_s)
        say(f"{instance} stopped")
    scaling = client.status().get("scaling")
    if scaling is None or scaling["mode"] != "on":  # else their number is not ours to say
        missing = f"fewer than the {len(old)} instances from before run"
        _wait(lambda: len(_running(client)) >= len(old), missing, timeout_s)


def wait_for_drain(client: AdminClient, instance: str, timeout_s: float) -> dict[str, Any]:
    """The report, once the instance is empty. Raises ServerRefused when that takes longer than `timeout_s`, or when the
    scheduler, which keeps the reports, was restarted meanwhile and has none."""

    def ended() -> dict[str, Any] | None:
        reports = {report["instance"]: report for report in client.drains()}
        report = reports.get(instance)
        if report is not None:
            return None if report["outcome"] == "draining" else report
        if _is_gone(client, instance):
            raise ServerRefused(f"{instance} is gone; the scheduler was restarted and has no report of its drain.")
        return None

    report: dict[str, Any] = _wait(ended, f"{instance} did not become empty", timeout_s)
    return report


def drain_sentence(report: dict[str, Any]) -> str:
    """A drain's report for people."""
    counts = {name: report[name] for name in ("moved", "replayed", "finished")}
    if report["outcome"] == "cut off":
        counts["failed"] = report["left"]
    if report["outcome"] == "lost":
        counts["left to replay"] = report["left"]
    what = {"empty": "is empty", "cut off": "was cut off", "lost": "was lost"}.get(report["outcome"], report["outcome"])
    then = " (it stays, empty)" if report["keep"] and report["outcome"] == "empty" else ""
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{report['instance']} {what} after {report['seconds']:.2f} s{then}: {said}"


def _instances(client: AdminClient) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.status()["instances"]
    return rows


def _running(client: AdminClient) -> list[str]:
    return [row["id"] for row in _instances(client) if row["state"] == "running"]


def _new_running(client: AdminClient, known: set[str]) -> str | None:
    return next((row["id"] for row in _instances(client) if row["id"] not in known and row["state"] == "running"), None)


def _is_gone(client: AdminClient, instance: str) -> bool:
    return all(row["id"] != instance or row["state"] in _GONE for row in _instances(client))


def _wait(condition: Callable[[], Any], failure: str, timeout_s: float) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline_s:
            raise ServerRefused(f"{failure} within {timeout_s:g} s.".capitalize())
        time.sleep(_POLL_S)
    return result


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _reason(body: dict[str, Any] | None) -> str:
    """The sentence in an error body: OpenAI's shape, or ours for a refused migration."""
    if body is None:
        return ""
    error = body.get("error")
    return str(error.get("message", "") if isinstance(error, dict) else body.get("reason", ""))
