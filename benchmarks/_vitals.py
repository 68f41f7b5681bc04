"""What the processes of a server hold: memory, descriptors, shared memory."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from frame.checked import shared_memory
from frame.vitals import pss_mib


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    instances: int
    pss_mib: dict[str, float]
    """By role: launcher, nursery, scheduler, front ends, instances."""
    descriptors: dict[int, int]
    """By process."""

    @property
    def total_mib(self) -> float:
        return sum(self.pss_mib.values())


@dataclass(slots=True)
class Vitals:
    """Samples of the process `pid` and everything below it."""

    pid: int
    samples: list[Sample] = field(default_factory=list)
    shared: set[Path] = field(default_factory=set)
    """Files of shared memory that any of the processes ever had."""

    def sample(self, at_s: float) -> None:
        root = psutil.Process(self.pid)
        pss: defaultdict[str, float] = defaultdict(float)
        descriptors: dict[int, int] = {}
        instances = 0
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                role = self._role(process)
                pss[role] += pss_mib([process])
                descriptors[process.pid] = process.num_fds()
                instances += role == "instances"
                self.shared |= shared_memory(process.pid)
        self.samples.append(Sample(at_s, instances, dict(pss), descriptors))

    def _role(self, process: psutil.Process) -> str:
        if process.pid == self.pid:
            return "launcher"
        words = " ".join(process.cmdline())
        if "scheduler_process" in words:
            return "scheduler"
        if "nursery" in words:
            return "nursery"
        return "front ends" if words.startswith("llumnix front-") else "instances"

    def growth(self, role: str | None, warm_s: float, instances: int) -> tuple[float, float]:
        """Median MiB of a role (None: of all) in the first and in the last third of the samples after `warm_s`
        with this number of instances."""
        steady = [s for s in self.samples if s.at_s >= warm_s and s.instances == instances]
        values = [s.total_mib if role is None else s.pss_mib.get(role, 0.0) for s in steady]
        third = max(1, len(values) // 3)
        return float(np.median(values[:third])), float(np.median(values[-third:]))

    def more_descriptors(self, warm_s: float) -> dict[int, tuple[int, int]]:
        """Of processes that live since `warm_s`: how many they had then, and have now."""
        first = next(s for s in self.samples if s.at_s >= warm_s)
        last = self.samples[-1]
        return {pid: (first.descriptors[pid], now) for pid, now in last.descriptors.items() if pid in first.descriptors}

    def left_behind(self) -> list[Path]:
        """Shared memory that is still there; ask when all processes have ended."""
        return sorted(path for path in self.shared if path.exists())
