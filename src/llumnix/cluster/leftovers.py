"""What ended children left running, such as the workers of an engine that was killed: who is told to end, and when the
place of the dead one may be used again.

Each child adopts what its own descendants leave behind while it lives (`linux.adopt_orphans`), and the nursery adopts
the rest. So an orphan below the nursery was left by a child that has ended, whatever its session, process group or
environment may be, and nothing of it is of use to anybody. Pure: pids and times come from outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM

GRACE_S = 1.0
"""Between SIGTERM and SIGKILL: some only wait for others to end, and then remove what those shared."""

DEADLINE_S = 10.0
"""After this long a place is used again all the same: only the kernel keeps a killed process so long, in a driver."""


@dataclass(frozen=True, slots=True)
class Steps:
    signals: tuple[tuple[int, int], ...]
    """Process and signal."""
    cleared: dict[str, tuple[int, ...]]
    """Ended children whose places are free, and what is left of them all the same: it has had its time."""


class Leftovers:
    def __init__(self) -> None:
        self._seen_s: dict[int, float] = {}
        """Orphans that run, and when they were first seen."""
        self._killed: set[int] = set()
        self._ended_s: dict[str, float] = {}
        """Children that ended and are not cleared."""

    @property
    def next_look_s(self) -> float | None:
        """When there is something to do though no process ends until then."""
        kills = [seen_s + GRACE_S for pid, seen_s in self._seen_s.items() if pid not in self._killed]
        return min([*kills, *(ended_s + DEADLINE_S for ended_s in self._ended_s.values())], default=None)

    def look(self, ended: Iterable[str], orphans: Set[int], at: float) -> Steps:
        """`ended`: children that ended since the last look; `orphans`: those there are now."""
        self._ended_s |= dict.fromkeys(ended, at)
        new = sorted(orphans - self._seen_s.keys())
        self._seen_s = {pid: self._seen_s.get(pid, at) for pid in sorted(orphans)}
        self._killed &= orphans
        late = [pid for pid, seen_s in self._seen_s.items() if at >= seen_s + GRACE_S and pid not in self._killed]
        self._killed.update(late)
        awaited = {child: self._awaited_by(ended_s) for child, ended_s in self._ended_s.items()}
        cleared = {
            child: pids for child, pids in awaited.items() if not pids or at >= self._ended_s[child] + DEADLINE_S
        }
        for child in cleared:
            del self._ended_s[child]
        return Steps((*((pid, SIGTERM) for pid in new), *((pid, SIGKILL) for pid in late)), cleared)

    def _awaited_by(self, ended_s: float) -> tuple[int, ...]:
        """It may be another's, but not one that had its time before."""
        return tuple(pid for pid, seen_s in self._seen_s.items() if seen_s + DEADLINE_S > ended_s)
