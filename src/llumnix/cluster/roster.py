"""Who is there: the instances in their slots and the front ends, as the supervisor knows them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from llumnix.cluster.nursery_messages import front_end_name
from llumnix.cluster.processes import FrontEndProcess, Instance, Place, Watch
from llumnix.control.fleet import Fleet
from llumnix.control.wanted_roles import WantedRoles
from llumnix.roles_config import RolesConfig
from llumnix.types import InstanceId, Role

INDICES = 65_536
"""vLLM's engines have a number of two bytes. A server that scales up and down gets there in some months."""

_FAILING = 2  # failures in a row after which nobody should count on it


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
        time, and none while something of a dead one holds memory there: an engine measures what is free while it
        starts, and vLLM's gives up if that becomes more."""
        busy = {self._gpu(n) for n, slot in self.slots.items() if slot.process is not None and slot.process.starting}
        busy.update(map(self._gpu, self.littered))
        held = self._held
        return {
            n: slot
            for n, slot in sorted(self.slots.items())
            if slot.process is None and n not in held and self._gpu(n) not in busy
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
