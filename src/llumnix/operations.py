"""What takes several calls of the admin API: an instance's requests, waiting for a drain, changing the number of
instances, rolling restart."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from llumnix.api.bodies import ClientRequest, InstanceRow, InstancesAnswer
from llumnix.client import AdminClient
from llumnix.control.scheduler_events import DrainOutcome, DrainReport
from llumnix.errors import ServerRefused, ServerSilent, UsageError
from llumnix.types import InstanceId, Role, by_number

Print = Callable[[str], None]

_POLL_S = 0.25
_ACQUAINTED_S = 3.0
"""So long after its start a front end has heard of every instance."""
_GONE = ("stopped", "lost")
_ENDS = {DrainOutcome.EMPTY: "is empty", DrainOutcome.CUT_OFF: "was cut off", DrainOutcome.LOST: "was lost"}


def restart_rolling(client: AdminClient, say: Print, timeout_s: float) -> None:
    """Replaces every instance, one after the other: a new one starts, with its role, before an old one is emptied and
    stopped, so capacity never falls. One that goes before its turn is left out. In the end as many run as before, less
    those that somebody else stopped, if auto-scaling is off. Raises ServerRefused when a step takes longer than
    `timeout_s`."""
    old = _running(client)
    if not old:
        raise ServerRefused("No instance is running, so there is nothing to restart.")
    wanted, known = len(old), set(old)
    for instance in old:
        if how := _replace(client, instance, known, say, timeout_s):
            say(f"{instance} is {how} already")
            wanted -= how != "lost"  # that one the launcher replaces
    scaling = _able(client, timeout_s).scaling
    if scaling is None or scaling.mode != "on":  # else their number is not ours to say
        missing = f"Fewer than the {wanted} instances from before run"
        _wait(lambda: len(_running(client)) >= wanted, missing, timeout_s)


def _replace(client: AdminClient, instance: InstanceId, known: set[InstanceId], say: Print, timeout_s: float) -> str:
    """How it went before another was ordered for it, `lost` or `stopped`; empty if it was replaced. `known`: all that
    were ever seen, which a front end that has just been restarted may not know yet; added to."""
    known |= {row.id for row in _able(client, timeout_s).instances}
    how: str = _wait(partial(_how_it_is_known, client, instance), f"{instance} is still starting", timeout_s)
    if how in _GONE:
        return how
    try:
        client.start(1, replaces=instance)
    except ServerSilent:
        raise  # it may have been ordered
    except (ServerRefused, UsageError):
        if (how := _how_it_is(client, instance)) in _GONE:
            return how
        raise
    new = _wait(partial(_new_running, client, known), "A new instance did not start", timeout_s)
    known.add(new)
    say(f"{new} runs; emptying {instance}")
    began_s = time.monotonic()
    failure = f"{instance} did not become empty"
    _wait(partial(_leaves, client, instance), failure, timeout_s, began_s)
    _wait(partial(_is_gone, client, instance), failure, timeout_s, began_s)
    say(f"{instance} stopped")
    return ""


def _leaves(client: AdminClient, instance: InstanceId) -> bool:
    """Has it drained, which may be said twice; False if it is there and the front end does not know it yet."""
    try:
        client.drain(instance, keep=False)
    except ServerSilent:
        raise
    except UsageError:
        return _is_gone(client, instance)
    except ServerRefused:
        if not _is_gone(client, instance):
            raise
    return True


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
        _say_who_runs(_wait(lambda: _all_running(client, before, count), missing, wait_s, began_s), say)


def scale(client: AdminClient, count: int, say: Print, wait_s: float | None) -> None:
    """Starts or drains as many instances as it takes until `count` serve; those with the least to do are drained
    first, the last one with a role at the end. What is ordered and waits for room, or for another attempt, is not
    ordered again. With `wait_s` it waits until as many run. Raises UsageError when auto-scaling would undo it."""
    began_s = time.monotonic()
    status = client.status()
    scaling = status.scaling
    if scaling is not None and scaling.mode == "on":
        raise UsageError("Auto-scaling is on and decides how many instances run; it would undo this.")
    running = [row for row in status.instances if row.state == "running"]
    listed = len(running) + sum(row.state == "starting" for row in status.instances)
    failing = 0 if scaling is None else scaling.failing  # they may be listed as starting, or not at all
    told = 0 if scaling is None else scaling.serving + scaling.starting
    sure, ordered = max(len(running), listed - failing, told), max(listed, told + failing)
    coming = [f"{sure - len(running)} still starting"] if sure > len(running) else []
    coming += [f"{failing} waiting for room or for another attempt"] if failing else []
    if count < sure:
        _drain_least_busy(client, running, sure - count, say, wait_s)
    elif count > ordered:
        if failing:
            say(f"ordered before: {', '.join(coming)}")
        start(client, count - ordered, say, None)
    else:
        serve = f"{'serves' if count == 1 else 'serve'}{', or were ordered,' if failing else ''} already"
        say(f"{count} {serve}" + (f" ({', '.join(coming)})" if coming else ""))
    if wait_s is not None:
        now = _wait(lambda: _all_running(client, set(), count), f"Fewer than {count} instances run", wait_s, began_s)
        before = {row.id for row in running}
        _say_who_runs([each for each in now if each not in before], say)


def _say_who_runs(new: list[InstanceId], say: Print) -> None:
    if new:
        say(f"{', '.join(new)} {'runs' if len(new) == 1 else 'run'}")


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


def _able(client: AdminClient, timeout_s: float) -> InstancesAnswer:
    """The status, once there is a scheduler to take orders."""

    def status() -> InstancesAnswer | None:
        now = client.status()
        return now if now.scheduler is None or now.scheduler.state == "running" else None

    able: InstancesAnswer = _wait(status, "The scheduler did not come back", timeout_s)
    return able


def _is_gone(client: AdminClient, instance: str) -> bool:
    return _how_it_is(client, instance) in _GONE


def _how_it_is_known(client: AdminClient, instance: str) -> str:
    """Empty while a front end that was just restarted makes its acquaintance, and takes no orders for it."""
    how = _how_it_is(client, instance)
    return "" if how == "starting" else how


def _how_it_is(client: AdminClient, instance: str) -> str:
    """Its state. One that is not listed has stopped long ago, unless the front end was just restarted and does not know
    all instances yet: it is looked for again."""
    until_s = time.monotonic() + _ACQUAINTED_S
    while True:
        state = next((row.state for row in client.instances() if row.id == instance), None)
        if state is not None:
            return str(state)
        if time.monotonic() >= until_s:
            return "stopped"
        time.sleep(_POLL_S)


def _wait(condition: Callable[[], Any], failure: str, timeout_s: float, began_s: float | None = None) -> Any:
    """`began_s`: since when, on the monotonic clock; None: from now on. While nobody answers, because the front end or
    the scheduler is restarted, it goes on."""
    deadline_s = (time.monotonic() if began_s is None else began_s) + timeout_s
    while True:
        silent = ""
        try:
            if result := condition():
                return result
        except ServerSilent as error:
            silent = f" {error}"
        if time.monotonic() > deadline_s:
            raise ServerRefused(f"{failure} within {timeout_s:g} s.{silent}")
        time.sleep(_POLL_S)
