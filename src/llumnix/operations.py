"""What takes several calls of the admin API: an instance's requests, waiting for a drain, changing the number of
instances, rolling restart."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from llumnix.api.bodies import ClientRequest, InstanceRow
from llumnix.client import AdminClient
from llumnix.control.scheduler_events import DrainOutcome, DrainReport
from llumnix.errors import ServerRefused, UsageError
from llumnix.types import InstanceId, Role, by_number

Print = Callable[[str], None]

_POLL_S = 0.25
_GONE = ("stopped", "lost")
_ENDS = {DrainOutcome.EMPTY: "is empty", DrainOutcome.CUT_OFF: "was cut off", DrainOutcome.LOST: "was lost"}


def restart_rolling(client: AdminClient, say: Print, timeout_s: float) -> None:
    """Replaces every instance, one after the other: a new one starts, with its role, before an old one is emptied and
    stopped, so capacity never falls. In the end as many run as before, if auto-scaling is off. Raises ServerRefused
    when a step takes longer than `timeout_s`."""
    old = _running(client)
    if not old:
        raise ServerRefused("No instance is running, so there is nothing to restart.")
    for instance in old:
        before = {row.id for row in client.instances()}
        client.start(1, replaces=instance)
        new = _wait(partial(_new_running, client, before), "A new instance did not start", timeout_s)
        say(f"{new} runs; emptying {instance}")
        client.drain(instance, keep=False)
        _wait(partial(_is_gone, client, instance), f"{instance} did not become empty", timeout_s)
        say(f"{instance} stopped")
    scaling = client.status().scaling
    if scaling is None or scaling.mode != "on":  # else their number is not ours to say
        missing = f"Fewer than the {len(old)} instances from before run"
        _wait(lambda: len(_running(client)) >= len(old), missing, timeout_s)


def start(
    client: AdminClient, count: int, say: Print, wait_s: float | None, replaces: InstanceId | None = None
) -> None:
    """Starts `count` more instances, or one with the role of another, which it `replaces`. With `wait_s` it waits for
    them and says so; raises ServerRefused when all of that takes longer."""
    began_s = time.monotonic()
    before = {row.id for row in client.instances()}
    client.start(count, replaces=replaces)
    say(f"starting {count} more")
    if wait_s is not None:
        missing = f"Fewer than {count} new instances run"
        new = _wait(lambda: _all_running(client, before, count), missing, wait_s, began_s)
        say(f"{', '.join(new)} {'runs' if count == 1 else 'run'}")


def scale(client: AdminClient, count: int, say: Print, wait_s: float | None) -> None:
    """Starts or drains as many instances as it takes until `count` serve; those with the least to do are drained
    first, the last one with a role at the end. With `wait_s` it waits until that is so. Raises UsageError when
    auto-scaling would undo it."""
    status = client.status()
    scaling = status.scaling
    if scaling is not None and scaling.mode == "on":
        raise UsageError("Auto-scaling is on and decides how many instances run; it would undo this.")
    running = [row for row in status.instances if row.state == "running"]
    coming = sum(row.state == "starting" for row in status.instances)
    have = max(len(running) + coming, 0 if scaling is None else scaling.serving + scaling.starting)
    if count > have:
        start(client, count - have, say, wait_s)
    elif count == have:
        say(
            f"{count} {'serves' if count == 1 else 'serve'} already" + (f" ({coming} still starting)" if coming else "")
        )
    else:
        _drain_least_busy(client, running, have - count, say, wait_s)


def _drain_least_busy(
    client: AdminClient, running: list[InstanceRow], count: int, say: Print, wait_s: float | None
) -> None:
    if len(running) <= count:
        raise ServerRefused("Instances are still starting; wait until they run, or fewer would be left than asked for.")
    began_s = time.monotonic()
    leaving = _least_busy(running)[:count]
    for row in leaving:
        client.drain(row.id, keep=False)
        say(f"{row.id} is being emptied and then stops")
    for row in leaving if wait_s is not None else []:
        say(drain_sentence(wait_for_drain(client, row.id, wait_s or 0.0, began_s)))


def _least_busy(running: list[InstanceRow]) -> list[InstanceRow]:
    """Those that can best be spared first: the last for prompts, or for tokens, stays as long as there are others."""
    first: list[InstanceRow] = []
    last: list[InstanceRow] = []
    left = Counter(row.role for row in running)
    for row in sorted(running, key=lambda row: (row.running + row.waiting, by_number(row.id))):
        spared = row.role is Role.MIXED or left[row.role] > 1
        (first if spared else last).append(row)
        left[row.role] -= 1
    return first + last


def requests_where(client: AdminClient, instance: str | None, state: str | None) -> list[ClientRequest]:
    """Those on this instance, and in this state; None: on any, in any. Raises UsageError for no instance."""
    rows = [row for row in client.requests() if instance in (None, row.instance) and state in (None, row.state)]
    if not rows and instance is not None and all(row.id != instance for row in client.instances()):
        raise UsageError(f"There is no instance {instance!r}.")
    return rows


def wait_for_drain(client: AdminClient, instance: str, timeout_s: float, began_s: float | None = None) -> DrainReport:
    """The report, once the instance is empty. Raises ServerRefused when that takes longer than `timeout_s` from now (or
    from `began_s`), or when the scheduler, which keeps the reports, was restarted meanwhile and has none."""

    def ended() -> DrainReport | None:
        report = next((report for report in reversed(client.drains()) if report.instance == instance), None)
        if report is not None:
            return None if report.outcome is DrainOutcome.DRAINING else report
        if _is_gone(client, instance):
            raise ServerRefused(f"{instance} is gone; the scheduler was restarted and has no report of its drain.")
        return None

    report: DrainReport = _wait(ended, f"{instance} did not become empty", timeout_s, began_s)
    return report


def drain_sentence(report: DrainReport) -> str:
    """A drain's report for people."""
    counts = {"moved": report.moved, "replayed": report.replayed, "finished": report.finished}
    if report.outcome is DrainOutcome.CUT_OFF:
        counts["failed"] = report.left
    if report.outcome is DrainOutcome.LOST:
        counts["left to replay"] = report.left
    what = _ENDS.get(report.outcome, report.outcome)
    then = " (it stays, empty)" if report.keep and report.outcome is DrainOutcome.EMPTY else ""
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{report.instance} {what} after {report.seconds:.2f} s{then}: {said}"


def _running(client: AdminClient) -> list[InstanceId]:
    return [row.id for row in client.instances() if row.state == "running"]


def _new_running(client: AdminClient, known: set[InstanceId]) -> InstanceId | None:
    return next((row.id for row in client.instances() if row.id not in known and row.state == "running"), None)


def _all_running(client: AdminClient, known: set[InstanceId], count: int) -> list[InstanceId] | None:
    new = [row.id for row in client.instances() if row.id not in known and row.state == "running"]
    return new if len(new) >= count else None


def _is_gone(client: AdminClient, instance: str) -> bool:
    return all(row.id != instance or row.state in _GONE for row in client.instances())


def _wait(condition: Callable[[], Any], failure: str, timeout_s: float, began_s: float | None = None) -> Any:
    """`began_s`: since when, on the monotonic clock; None: from now on."""
    deadline_s = (time.monotonic() if began_s is None else began_s) + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline_s:
            raise ServerRefused(f"{failure} within {timeout_s:g} s.")
        time.sleep(_POLL_S)
    return result
