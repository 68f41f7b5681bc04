"""Which queue of a waiting room is next: a class by priority and share, in it a tenant by weight (turns.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from llumnix.control.held_requests import QueueName
from llumnix.control.tenant_account import TenantAccount
from llumnix.control.turns import Turns
from llumnix.policy.classes import ServiceClass
from llumnix.types import Priority


class QueueTurns:
    """Classes of one priority have turns with each other, and tenants of one class. `able` are the queues in which
    somebody waits who may be called: the others stand still, and save nothing up either."""

    def __init__(self) -> None:
        self._classes: Mapping[str, ServiceClass] = {}
        self._accounts: Mapping[str, TenantAccount] = {}
        self._of_classes: dict[Priority, Turns[str]] = {}
        self._of_tenants: dict[str, Turns[str]] = {}
        """By class."""

    def change(self, classes: Mapping[str, ServiceClass], accounts: Mapping[str, TenantAccount]) -> None:
        """Of those that are there from now on; what each had is not forgotten."""
        self._classes, self._accounts = classes, accounts
        priorities = {each.priority for each in classes.values()}
        self._of_classes = {each: self._of_classes.get(each, Turns()) for each in priorities}
        self._of_tenants = {each: self._of_tenants.get(each, Turns()) for each in classes}
        for priority, turns in self._of_classes.items():
            turns.keep(name for name, each in classes.items() if each.priority == priority)
        for turns in self._of_tenants.values():
            turns.keep(accounts)

    def comes(self, queue: QueueName, able: Sequence[QueueName]) -> None:
        """Somebody in it may be called from now on."""
        priority = self._classes[queue.cls].priority
        tenants = [other.tenant for other in able if other.cls == queue.cls and other != queue]
        if not tenants:
            others = {other.cls for other in able if other.cls != queue.cls}
            rivals = [name for name in others if self._classes[name].priority == priority]
            self._of_classes[priority].comes(queue.cls, rivals)
        self._of_tenants[queue.cls].comes(queue.tenant, tenants)

    def next(self, able: Sequence[QueueName]) -> QueueName:
        """Of these, of which there must be one."""
        names = {queue.cls for queue in able}
        first = min(self._classes[name].priority for name in names)
        cls = self._of_classes[first].next([name for name in names if self._classes[name].priority == first])
        return QueueName(cls, self._of_tenants[cls].next([queue.tenant for queue in able if queue.cls == cls]))

    def serve(self, queue: QueueName, work: float) -> None:
        """It had its turn, for so much."""
        of_class, of_tenant, share, weight = self._counted(queue)
        of_class.serve(queue.cls, work / share)
        of_tenant.serve(queue.tenant, work / weight)

    def settle(self, queue: QueueName, work: float) -> None:
        """A turn that it had was so much more, or less."""
        of_class, of_tenant, share, weight = self._counted(queue)
        of_class.settle(queue.cls, work / share)
        of_tenant.settle(queue.tenant, work / weight)

    def counters(self) -> Iterator[tuple[QueueName, float]]:
        """What each had for its weight, of all that ever came."""
        for cls, turns in self._of_tenants.items():
            for tenant, work in turns.counters.items():
                yield QueueName(cls, tenant), work

    def _counted(self, queue: QueueName) -> tuple[Turns[str], Turns[str], float, float]:
        cls = self._classes[queue.cls]
        weight = self._accounts[queue.tenant].terms.weight
        return self._of_classes[cls.priority], self._of_tenants[cls.name], cls.share, weight
