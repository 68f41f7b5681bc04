"""Requests on their way to an instance: admitted or declined, held until one can begin them, called by turns.

A machine without I/O, driven live by `engine/vllm/front_end/desk.py` and in virtual time by `sim/front_end.py`. What is
sent to an instance is about to begin there: the order is decided here, and the queues of the engines stay short. Called
first is the class of the highest priority; among those the one that had least for its share, within it the tenant that
had least for its weight (turns.py), of that tenant's requests the one that is due first.

A driver asks for each request (`ask`), then calls until nobody comes (`call`), sending each that comes before it calls
the next; it calls again when a report comes, when a request ends, and at `wake_at_s`. It says of each that came how it
ended (`ended`), and of one that is held when its client goes (`left`). Times must not go backwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from math import ceil, inf

import msgspec

from llumnix.control.called_before import tokens_called_before
from llumnix.control.class_counts import Standing
from llumnix.control.front_end_events import Arrived
from llumnix.control.held_requests import HeldRequest, HeldRequests, QueueName
from llumnix.control.openings import Opening, Openings
from llumnix.control.queue_turns import QueueTurns
from llumnix.control.tenant_account import Allowance, TenantAccount
from llumnix.policy.classes import Classes, Declined, ServiceClass
from llumnix.policy.figures import figures
from llumnix.types import InstanceId, RequestId

OUTPUT_WEIGHT = 2.0
"""Work of an output token in turns; a prompt token is 1 (as in the paper of VTC, after the prices of such services)."""

SHORTEST_RETRY_S, LONGEST_RETRY_S = 1, 30
"""Told to clients of a server that is full."""

UNKNOWN_PART = 0.5
"""Of a target for the first token, what is left for the prompt where nobody knows how long that takes."""

MOST_PASSED = 8
"""Queues whose first waits for an instance of its own, and that others pass: bounds what a call costs."""

_SMOOTHING = 0.1


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A request that wants to be served, at the priority of its class. Its tenant and class are in the room's."""

    asked: Arrived
    tenant: str
    cls: str
    most_output_tokens: int


class Called(msgspec.Struct, frozen=True, gc=False):
    """It is to be sent to an instance now."""

    request: RequestId
    held_s: float


class GaveUp(msgspec.Struct, frozen=True, gc=False):
    """It waited as long as its class may, and is declined."""

    request: RequestId
    declined: Declined


class _Sent(msgspec.Struct, frozen=True, gc=False):
    queue: QueueName
    prompt_tokens: int
    expected_tokens: float

    @property
    def work(self) -> float:
        return self.prompt_tokens + OUTPUT_WEIGHT * self.expected_tokens


class WaitingRoom:
    """All of it is bounded: by twice the classes' `max_held`, and by what runs."""

    def __init__(self, classes: Classes, at_s: float) -> None:
        self._classes: dict[str, ServiceClass] = {}
        self._accounts: dict[str, TenantAccount] = {}
        self._held = HeldRequests()
        self._sent: dict[RequestId, _Sent] = {}
        self._turns = QueueTurns()
        self._number = 0
        self._called_s: float | None = None
        self._call_gap_s = 0.0
        """Between two calls while others wait, smoothed."""
        self.change(classes, at_s)

    def change(self, classes: Classes, at_s: float) -> None:
        """Other classes and limits from now on; what was used of a limit that stays is not forgotten, and what is here
        under a name that is no more goes on by its old terms."""
        could = set(self._able())
        used = {*self._held.queues, *(sent.queue for sent in self._sent.values())}
        old_classes = {queue.cls: self._classes[queue.cls] for queue in used}
        self._classes = {**old_classes, **classes.classes}
        accounts, terms = self._accounts, classes.all_tenants
        self._accounts = {queue.tenant: accounts[queue.tenant] for queue in used}
        for name, each in terms.items():
            known = self._accounts[name] = accounts.get(name) or TenantAccount(each, at_s)
            known.change(each, at_s)
        self._turns.change(self._classes, self._accounts)
        self._may_be_called(set(self._able()) - could)

    # ------------------------------------------------------------------ what happens

    def at_the_door(self, at_s: float, tenant: str, cls: str | None) -> Declined | None:
        """Why a request of which no more is known need not come in; nothing is charged."""
        declined = self._accounts[tenant].declines_any(at_s)
        return declined if declined is not None or cls is None else self._no_room(QueueName(cls, tenant))

    def ask(self, at_s: float, ask: Ask, openings: Openings) -> Declined | None:
        """None: it waits for its call, which may come at once."""
        cls, account, queue = self._classes[ask.cls], self._accounts[ask.tenant], QueueName(ask.cls, ask.tenant)
        output = account.expected_output(ask.most_output_tokens)
        self._number += 1
        target_s = cls.max_hold_s if cls.ttft_s is None else cls.ttft_s
        held = HeldRequest(at_s + target_s, self._number, at_s, ask.asked, output)
        declined = account.declines(held.tokens, at_s) or self._no_room(queue) or self._too_late(held, queue, openings)
        if declined is None:
            account.reserve(held.tokens)
            self._enter(queue, held)
        return declined

    def call(self, at_s: float, openings: Openings) -> Called | GaveUp | None:
        """The next one, if an instance would begin it soon; or one that has waited too long."""
        if not self._held:
            return None
        return self._in_turn(at_s, openings) or self._held_too_long(at_s)

    def _in_turn(self, at_s: float, openings: Openings) -> Called | GaveUp | None:
        able, waited_for = self._able(), set[InstanceId | None]()
        for _ in range(min(len(able), MOST_PASSED + 1)):
            queue = self._turns.next(able)
            first = self._held.queues[queue][0]
            opening = openings.look(first.asked, 0.0)
            if opening.where not in waited_for:  # else what becomes free there is for those before it
                if opening.begins_soon:
                    return self._take(at_s, queue, first, opening)
                if not opening.is_particular:
                    return None
                waited_for.add(opening.where)
            able.remove(queue)
        return None

    def _take(self, at_s: float, queue: QueueName, first: HeldRequest, opening: Opening) -> Called | GaveUp:
        cls = self._classes[queue.cls]
        if self._misses_its_target(at_s, cls, first, opening):
            self.left(first.request)
            return GaveUp(first.request, self._declined_late(queue.tenant, at_s - first.at_s))
        self._held.take(first.request)
        self._send(at_s, queue, first)
        return Called(first.request, at_s - first.at_s)

    def ended(self, request: RequestId, output_tokens: int) -> None:
        """It was called, and made so many tokens."""
        sent = self._sent.pop(request)
        self._accounts[sent.queue.tenant].settle(sent.expected_tokens, output_tokens)
        self._turns.settle(sent.queue, OUTPUT_WEIGHT * (output_tokens - sent.expected_tokens))
        self._runs_no_more(sent.queue.tenant)

    def unsent(self, request: RequestId) -> None:
        """It was called, and went nowhere: as if it had not come."""
        sent = self._sent.pop(request)
        self._accounts[sent.queue.tenant].give_back(sent.prompt_tokens + sent.expected_tokens)
        self._turns.settle(sent.queue, -sent.work)
        self._runs_no_more(sent.queue.tenant)

    def left(self, request: RequestId) -> None:
        """Its client does not wait any more. Nothing happens if it does not wait here."""
        if request in self._held:
            queue, held = self._held.take(request)
            self._accounts[queue.tenant].give_back(held.tokens)

    # ------------------------------------------------------------------ to look at

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def demand(self) -> tuple[int, int]:
        """Requests and tokens of prompts that more instances could serve: a tenant's limit leaves the others here."""
        return self._held.able({name: account.places for name, account in self._accounts.items()})

    @property
    def wake_at_s(self) -> float:
        """When somebody will have waited as long as its class may; inf if nobody waits."""
        return min(
            (held.at_s + self._classes[queue.cls].max_hold_s for queue, held in self._held.oldest()), default=inf
        )

    def held_of(self, cls: str) -> int:
        return self._held.count(cls)

    def account(self, tenant: str) -> TenantAccount:
        return self._accounts[tenant]

    def standings(self) -> dict[QueueName, Standing]:
        """Of all that ever waited here, by class and tenant."""
        running = Counter(sent.queue for sent in self._sent.values())
        return {
            queue: Standing(self._held.count_in(queue), running[queue], work) for queue, work in self._turns.counters()
        }

    def allowances(self, at_s: float, tenant: str) -> tuple[Allowance, ...]:
        return self._accounts[tenant].allowances(at_s)

    # ------------------------------------------------------------------ who may come in

    def _no_room(self, queue: QueueName) -> Declined | None:
        """When it is full, there is still as much room again, for tenants of whom fewer wait than their part."""
        cls, waiting = self._classes[queue.cls], self._held.count(queue.cls)
        if waiting < cls.max_held or (waiting < 2 * cls.max_held and self._held.count_in(queue) < self._part(queue)):
            return None
        why = f"{waiting} requests of the class {cls.name} wait already (limit {cls.max_held})."
        return Declined(503, "overloaded", why, _retry_s(waiting * self._call_gap_s))

    def _too_late(self, held: HeldRequest, queue: QueueName, openings: Openings) -> Declined | None:
        """If nobody waits, or it may not wait, it is called at once, and seen then."""
        limit_s = self._classes[queue.cls].patience_s
        if not self._held or not limit_s:
            return None
        ahead = tokens_called_before(queue, held.prompt_tokens, self._held, self._classes, self._accounts)
        foreseen_s = openings.look(held.asked, ahead).first_token_s
        if foreseen_s is None or foreseen_s <= limit_s:
            return None
        why = f"Its first token would take {foreseen_s:.1f} s, and the class {queue.cls} waits {figures(limit_s)} s."
        return Declined(503, "overloaded", why, _retry_s(foreseen_s - limit_s))

    def _part(self, queue: QueueName) -> float:
        """Of its class's `max_held`, by weight among those of whom some wait."""
        tenants = {other.tenant for other in self._held.queues if other.cls == queue.cls} | {queue.tenant}
        weights = sum(self._accounts[tenant].terms.weight for tenant in tenants)
        return self._classes[queue.cls].max_held * self._accounts[queue.tenant].terms.weight / weights

    # ------------------------------------------------------------------ who is next

    def _enter(self, queue: QueueName, held: HeldRequest) -> None:
        if queue not in self._held.queues:
            self._turns.comes(queue, self._able())
        self._held.add(queue, held)

    def _runs_no_more(self, tenant: str) -> None:
        account = self._accounts[tenant]
        was_stuck = not account.may_run
        account.running -= 1
        if was_stuck and account.may_run:
            self._may_be_called({queue for queue in self._held.queues if queue.tenant == tenant})

    def _may_be_called(self, again: Collection[QueueName]) -> None:
        before = [queue for queue in self._able() if queue not in again]
        for queue in again:
            self._turns.comes(queue, before)

    def _able(self) -> list[QueueName]:
        return [queue for queue in self._held.queues if self._accounts[queue.tenant].may_run]

    def _held_too_long(self, at_s: float) -> GaveUp | None:
        for queue, held in self._held.oldest():
            limit_s = self._classes[queue.cls].max_hold_s
            if at_s >= held.at_s + limit_s:
                self.left(held.request)
                return GaveUp(held.request, self._declined_late(queue.tenant, limit_s))
        return None

    @staticmethod
    def _misses_its_target(at_s: float, cls: ServiceClass, held: HeldRequest, opening: Opening) -> bool:
        """It is its turn, and its first token would miss its target all the same: others can still make theirs."""
        if cls.ttft_s is None or cls.max_hold_s > cls.ttft_s:
            return False
        foreseen_s = opening.first_token_s
        return held.due_s - at_s < (UNKNOWN_PART * cls.ttft_s if foreseen_s is None else foreseen_s)

    def _declined_late(self, tenant: str, waited_s: float) -> Declined:
        account, retry_s = self._accounts[tenant], _retry_s(len(self._held) * self._call_gap_s)
        waited = f"It waited for {figures(waited_s, 2)} s"
        if account.may_run:
            return Declined(503, "overloaded", f"{waited}, and no instance could begin it in time.", retry_s)
        why = f"{waited}: its tenant may have {account.most_at_once}."
        return Declined(429, "rate_limit_exceeded", why, retry_s)

    def _send(self, at_s: float, queue: QueueName, held: HeldRequest) -> None:
        self._accounts[queue.tenant].running += 1
        sent = self._sent[held.request] = _Sent(queue, held.prompt_tokens, held.expected_tokens)
        self._turns.serve(queue, sent.work)
        if self._called_s is not None and self._held:
            self._call_gap_s += _SMOOTHING * (at_s - self._called_s - self._call_gap_s)
        self._called_s = at_s


def _retry_s(about_s: float) -> float:
    return float(min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, ceil(about_s))))
