"""What becomes of the requests of each class and tenant: who waits, who runs, who was refused, who was served in time.

A machine without I/O, beside the waiting room: told by the same drivers what happened, asked for rows to look at.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import msgspec

from llumnix.control.held_requests import QueueName
from llumnix.policy.classes import Classes, ServiceClass

USED_S = 60.0
"""Tokens are those of the last minute."""

ATTAINED_S = 300.0
"""Targets are those of requests that ended within the last five."""

_SLOTS = 12
"""Into which such a time is cut: what is older goes by whole slots."""

NO_QUEUE = QueueName("", "")
"""Of requests without a class and a tenant, being refused for that."""


class ClassRow(msgspec.Struct, frozen=True, kw_only=True):
    """One class and one of its tenants."""

    cls: str = msgspec.field(name="class")
    """Empty, as is `tenant`: of requests that are refused because they have none."""
    tenant: str
    held: int = 0
    """Requests that wait for their turn."""
    running: int = 0
    """Requests that had it and have not ended."""
    work: float = 0.0
    """What was done for it, over its weight, as turns count it: of those who wait, the one with the least is next."""
    tokens_per_minute: int = 0
    """In the last minute: of prompts that had their turn, and of outputs that ended."""
    ttft_met: int = 0
    """Requests that ended in the last five minutes, and met the target; none where there is no target. So are these."""
    ttft_missed: int = 0
    tpot_met: int = 0
    tpot_missed: int = 0
    refused: dict[str, int] = {}
    """By HTTP status, since the front ends started."""


class Standing(msgspec.Struct, frozen=True):
    """Of one class and tenant, as the waiting room has it."""

    held: int
    running: int
    work: float


class _Recent:
    """Sums of what came within the last so many seconds. Times must not go backwards."""

    def __init__(self, over_s: float) -> None:
        self._slot_s = over_s / _SLOTS
        self._slots: deque[tuple[int, Counter[str]]] = deque()

    def add(self, at_s: float, what: str, amount: int = 1) -> None:
        self._forget(at_s)
        number = int(at_s // self._slot_s)
        if not self._slots or self._slots[-1][0] != number:
            self._slots.append((number, Counter()))
        self._slots[-1][1][what] += amount

    def sums(self, at_s: float) -> Counter[str]:
        self._forget(at_s)
        together: Counter[str] = Counter()
        for _, counts in self._slots:
            together.update(counts)
        return together

    def _forget(self, at_s: float) -> None:
        while self._slots and self._slots[0][0] <= at_s // self._slot_s - _SLOTS:
            self._slots.popleft()


class _Counts:
    """Of one class and tenant."""

    __slots__ = ("refused", "targets", "tokens")

    def __init__(self) -> None:
        self.tokens = _Recent(USED_S)
        self.targets = _Recent(ATTAINED_S)
        self.refused: Counter[str] = Counter()


class ClassCounts:
    """Of all that ever came, but for those that a changed file has no more (`keep`)."""

    def __init__(self) -> None:
        self._of: defaultdict[QueueName, _Counts] = defaultdict(_Counts)

    def refused(self, queue: QueueName, status: int) -> None:
        self._of[queue].refused[str(status)] += 1

    def came_in(self, at_s: float, queue: QueueName, prompt_tokens: int) -> None:
        self._of[queue].tokens.add(at_s, "tokens", prompt_tokens)

    def ended(
        self, at_s: float, queue: QueueName, cls: ServiceClass, output_tokens: int, ttft_s: float, tpot_s: float | None
    ) -> dict[str, bool]:
        """Whether it met the targets of its class, of those that there are. `tpot_s`: None with a single token."""
        counts = self._of[queue]
        counts.tokens.add(at_s, "tokens", output_tokens)
        met: dict[str, bool] = {}
        if cls.ttft_s is not None:
            met["ttft"] = ttft_s <= cls.ttft_s
        if cls.tpot_s is not None and tpot_s is not None:
            met["tpot"] = tpot_s <= cls.tpot_s
        for target, is_met in met.items():
            counts.targets.add(at_s, f"{target}_{'met' if is_met else 'missed'}")
        return met

    def keep(self, classes: Classes) -> None:
        """Forgets those whose class or tenant is not there any more."""
        tenants = classes.all_tenants
        for queue in [*self._of]:
            if queue != NO_QUEUE and not (queue.cls in classes.classes and queue.tenant in tenants):
                del self._of[queue]

    def rows(self, at_s: float, standings: Mapping[QueueName, Standing]) -> tuple[ClassRow, ...]:
        """By class and tenant."""
        return tuple(self._row(at_s, queue, standings.get(queue)) for queue in sorted({*self._of, *standings}))

    def _row(self, at_s: float, queue: QueueName, standing: Standing | None) -> ClassRow:
        counts, there = self._of.get(queue) or _Counts(), standing or Standing(0, 0, 0.0)
        return ClassRow(
            cls=queue.cls,
            tenant=queue.tenant,
            held=there.held,
            running=there.running,
            work=there.work,
            tokens_per_minute=counts.tokens.sums(at_s)["tokens"],
            refused=dict(counts.refused),
            **counts.targets.sums(at_s),
        )


def add_up(parts: Iterable[Sequence[ClassRow]]) -> list[ClassRow]:
    """The rows of several front ends, one for each class and tenant."""
    found: dict[tuple[str, str], ClassRow] = {}
    for row in chain.from_iterable(parts):
        key = row.cls, row.tenant
        found[key] = row if key not in found else _sum(found[key], row)
    return [found[key] for key in sorted(found)]


def _sum(one: ClassRow, other: ClassRow) -> ClassRow:
    counts = {
        name: getattr(one, name) + getattr(other, name)
        for name in ClassRow.__struct_fields__
        if name not in ("cls", "tenant", "refused")
    }
    refused = dict(Counter(one.refused) + Counter(other.refused))
    return msgspec.structs.replace(one, refused=refused, **counts)
