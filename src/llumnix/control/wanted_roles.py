"""How many instances are to have which role, as configured and as changed since: none is lost when instances go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from llumnix.roles_config import RolesConfig
from llumnix.types import Role


class WantedRoles:
    """Adaptive ones are the scheduler's to say, and change with what is asked: none is kept for who has gone."""

    def __init__(self, config: RolesConfig) -> None:
        self._adaptive = config.roles == "adaptive"
        self._wanted = {Role.PREFILL: config.prefill_instances, Role.DECODE: config.decode_instances}

    def of_another(self, present: Iterable[Role]) -> Role:
        """Of an instance that starts beside those with these roles: the first one that too few have, else mixed. With
        adaptive roles that of those that are not for prompts."""
        if self._adaptive:
            return Role.DECODE if Role.PREFILL in present else Role.MIXED
        if not any(self._wanted.values()):
            return Role.MIXED
        have = Counter(present)
        return next((role for role, count in self._wanted.items() if have[role] < count), Role.MIXED)

    def change(self, old: Role, new: Role) -> None:
        """An instance has another role from now on, and so is whoever comes after it to have."""
        if old in self._wanted:
            self._wanted[old] = max(0, self._wanted[old] - 1)
        if new in self._wanted:
            self._wanted[new] += 1
