"""Who is there: the instances in their slots and the front ends, as the supervisor knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from llumnix.cluster.nursery_messages import front_end_name
from llumnix.control.fleet import Fleet
from llumnix.control.wanted_roles import WantedRoles
from llumnix.roles_config import RolesConfig
from llumnix.types import InstanceId, Role

INDICES = 65_536
"""vLLM's engines have a number of two bytes. A server that scales up and down gets there in some months."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_HEALTHY_S = 60.0  # who lived this long is forgiven its earlier failures
_LATE_S = 5.0
_FAILING = 2  # failures in a row after which nobody should count on it


@dataclass(slots=True)
class Retries:
    """How often in a row something failed, and so how long to wait before the next attempt."""

    failures: int = 0
    not_before_s: float = 0.0

    def failed(self, at: float, lived_s: float) -> None:
        """The first failure of something that lived is no pattern yet: it is tried again at once."""
        if lived_s >= _HEALTHY_S:
            self.failures = 0
        at_once = lived_s > 0 and self.failures == 0
        pause_s = 0.0 if at_once else min(_FIRST_PAUSE_S * 2 ** min(self.failures, 10), _LONGEST_PAUSE_S)
        self.not_before_s = at + pause_s
        self.failures += 1


@dataclass(slots=True)
class Watch:
    """Whether something that should be heard again and again has fallen silent: then it hangs."""

    patience_s: float
    due_s: float | None = None
    """None: nothing is expected of it."""

    def heard(self, at: float) -> None:
        self.due_s = at + self.patience_s

    def finds_it_hanging(self, at: float) -> bool:
        """True once. Whoever looks long after the time stood still himself, and so may everybody have."""
        if self.due_s is None or at < self.due_s:
            return False
        late = at >= self.due_s + _LATE_S
        self.due_s = at + self.patience_s if late else None
        return not late


@dataclass(slots=True)
class Process:
    """A process that runs, or is being forked (`pid` is None until the nursery says so)."""

    name: str
    forked_s: float
    pid: int | None = None
    kill_at_s: float | None = None
    end: str = ""
    """Why it is being ended; empty while it is meant to live."""
    killed_s: float | None = None
    """When SIGKILL was sent to it."""


@dataclass(slots=True)
class FrontEndProcess(Process):
    index: int = field(kw_only=True)
    watch: Watch = field(kw_only=True)
    """From its first heartbeat on, which comes when it begins to serve; until then `kill_at_s` counts."""


@dataclass(frozen=True, slots=True)
class Leave:
    """An instance has to be empty by then (on the supervisor's clock), for its machine goes."""

    why: str
    by_s: float


@dataclass(slots=True)
class Instance(Process):
    index: int = field(kw_only=True)
    slot: int = field(kw_only=True)
    node: str = ""
    """The machine it is on, known once it is forked."""
    control: str = ""
    """Address of its mailbox, known once it serves."""
    served_since_s: float | None = None
    replace: bool = True
    """Whether its slot is filled again after its end."""
    goes: bool = False
    """It says that it drains and is not kept: its slot goes with it, however it ends."""
    drains: bool = False
    """It says that it takes no requests."""
    leaves: Leave | None = None
    """Another one was started for it already: its slot goes with it, however it ends."""

    @property
    def id(self) -> InstanceId:
        return InstanceId(self.name)

    @property
    def starting(self) -> bool:
        return self.served_since_s is None

    @property
    def waits_for_room(self) -> bool:
        """Its time to start has not begun: there is no place for it anywhere."""
        return self.starting and self.kill_at_s is None and not self.end

    def served_s(self, at: float) -> float:
        return 0.0 if self.served_since_s is None else at - self.served_since_s


ProcessT = TypeVar("ProcessT", bound=Process)


@dataclass(slots=True)
class Place(Generic[ProcessT]):
    """Room for one process; empty while it waits for its turn or for the end of a pause."""

    attempts: Retries = field(default_factory=Retries)
    process: ProcessT | None = None
    extra: bool = False
    """Asked for while others serve, and never filled yet: not worth trying for ever."""
    role: Role = Role.MIXED
    """Of the instance that is here, and of whoever comes after it."""

    def due(self, at: float) -> bool:
        return self.process is None and self.attempts.not_before_s <= at


class Roster:
    def __init__(
        self,
        instances: int,
        front_ends: int,
        per_gpu: int = 1,
        most: int | None = None,
        roles: RolesConfig | None = None,
    ) -> None:
        """`most`: instances that there are devices for; None if nobody knows."""
        self._per_gpu = per_gpu
        self._most = most
        self._wanted_roles = WantedRoles(roles or RolesConfig())
        self.slots: dict[int, Place[Instance]] = {}
        self._stuck: dict[str, int] = {}
        """Killed instances that the kernel does not let end, and which slots they had."""
        self.add_slots(instances, extra=False)
        self.front_end_places: dict[int, Place[FrontEndProcess]] = {index: Place() for index in range(front_ends)}
        self.littered: dict[int, str] = {}
        """Slots that may not be used yet: something of the instance that was there holds their GPUs."""
        self._by_name: dict[str, Instance | FrontEndProcess] = {}
        self._numbers = count()

    @property
    def instances(self) -> list[Instance]:
        return [place.process for _, place in sorted(self.slots.items()) if place.process is not None]

    @property
    def front_ends(self) -> list[FrontEndProcess]:
        return [place.process for place in self.front_end_places.values() if place.process is not None]

    @property
    def processes(self) -> list[Instance | FrontEndProcess]:
        return list(self._by_name.values())

    @property
    def usable_slots(self) -> dict[int, Place[Instance]]:
        """Those in which an instance could start, if its turn has come. Of several that share a GPU one starts at a
        time: an engine measures what is free while it starts."""
        starting = {
            self._gpu(n) for n, slot in self.slots.items() if slot.process is not None and slot.process.starting
        }
        not_free = self.littered.keys() | self._held
        return {
            n: slot
            for n, slot in sorted(self.slots.items())
            if slot.process is None and n not in not_free and self._gpu(n) not in starting
        }

    def one_for_each_gpu(self, slots: Sequence[int]) -> list[int]:
        """The first of those that share one."""
        return sorted({self._gpu(slot): slot for slot in reversed(slots)}.values())

    def _gpu(self, slot: int) -> int:
        """Which of the groups of GPUs that hold an instance; as the engine has it (`InstanceSpec.device_slot`)."""
        return slot // self._per_gpu

    @property
    def starting(self) -> int:
        return sum(place.process is not None and place.process.starting for place in self.slots.values())

    def fleet(self, last_order: int, ending: bool = False) -> Fleet:
        """The instances, counted. One that waits for its turn or for the end of a pause is starting, too; one that has
        failed more than once, or for which there is no room, may never start."""
        serving = starting = failing = 0
        held = self._held
        for number, place in self.slots.items():
            process = place.process
            if process is not None and not process.starting and process.killed_s is None:
                serving += 1
            elif process is not None and process.end and not process.replace:
                continue
            elif (
                place.attempts.failures >= _FAILING
                or number in held
                or (process is not None and process.waits_for_room)
            ):
                failing += 1
            else:
                starting += 1
        room = None if self._most is None else max(0, self._most - len(self.slots.keys() | held))
        return Fleet(
            serving=serving, starting=starting, failing=failing, last_order=last_order, room=room, ending=ending
        )

    def find(self, name: str) -> Instance | FrontEndProcess | None:
        return self._by_name.get(name)

    def instance(self, instance: InstanceId) -> Instance | None:
        process = self._by_name.get(instance)
        return process if isinstance(process, Instance) else None

    def gone(self, process: Instance | FrontEndProcess) -> None:
        """Its process ended; its place is empty."""
        place = self.slots[process.slot] if isinstance(process, Instance) else self.front_end_places[process.index]
        place.process = None
        del self._by_name[process.name]

    def strand(self, instance: Instance) -> None:
        """It was killed and does not end: where GPUs are counted it keeps its own, and whoever was to take its place
        has another's, if there are any, else waits for them."""
        self._stuck[instance.name] = instance.slot
        free = set(range(self._most or 0)) - self.slots.keys() - self._held
        if free and instance.slot in self.slots:
            self.slots[min(free)] = self.slots.pop(instance.slot)

    def ends_at_last(self, name: str, remains: bool) -> bool:
        """Whether it was stuck. If it `remains` in part, its slot is free once it is `cleared`."""
        slot = self._stuck.pop(name, None)
        if slot is not None and remains and self._most is not None:
            self.littered[slot] = name
        return slot is not None

    @property
    def _held(self) -> set[int]:
        """Slots whose GPUs are those of stuck ones. On CPUs there is nothing to wait for, and Ray counts itself."""
        return set() if self._most is None else set(self._stuck.values())

    def cleared(self, name: str) -> None:
        """Nothing is left of the process that ended under this name."""
        self.littered = {slot: child for slot, child in self.littered.items() if child != name}

    def add_slots(self, count: int, extra: bool = True, instead_of: Instance | None = None) -> None:
        """The smallest free numbers, so that a slot's GPUs are used again. Their role is the one of who goes and they
        stand in for (`instead_of`), otherwise one that is missing."""
        for _ in range(count):
            if instead_of is not None:
                role = self.slots[instead_of.slot].role
            else:
                role = self._wanted_roles.of_another(place.role for place in self.slots.values())
            taken = self.slots.keys() | self._held
            number = min(set(range(len(taken) + 1)) - taken)
            self.slots[number] = Place(extra=extra, role=role)

    def give_role(self, instance: Instance, role: Role) -> None:
        """It has this role from now on, and so has whoever takes its place."""
        place = self.slots[instance.slot]
        self._wanted_roles.change(place.role, role)
        place.role = role

    def place_instance(self, slot: int, at: float, kill_at_s: float) -> Instance:
        """A new incarnation: its id was never used before, nor was its index for as long as there are numbers."""
        taken = {instance.index for instance in self.instances}
        number = next(number for number in self._numbers if number % INDICES not in taken)
        instance = Instance(name=f"i{number}", forked_s=at, kill_at_s=kill_at_s, index=number % INDICES, slot=slot)
        self.slots[slot].process = self._by_name[instance.name] = instance
        return instance

    def place_front_end(self, index: int, at: float, patience_s: float) -> None:
        """`patience_s`: so long it may be silent once it was heard."""
        front_end = FrontEndProcess(name=front_end_name(index), forked_s=at, index=index, watch=Watch(patience_s))
        self.front_end_places[index].process = self._by_name[front_end.name] = front_end
