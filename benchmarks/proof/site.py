"""Where a part of `gpu_proof.py` finds what it works on: a server, how much to do, and what others measured."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from _downtime_figures import Figures

from proof.sizes import ModelSize


@dataclass(frozen=True, slots=True)
class Amount:
    """How much each part does."""

    requests: int
    at_once: int
    most_tokens: int
    killed: int
    drained: int
    lengths: tuple[int, ...]
    moves: int
    prompts: str
    batches: str
    contexts: str


ON_GPU = Amount(
    requests=64,
    at_once=64,
    most_tokens=160,
    killed=16,
    drained=50,
    lengths=(256, 512, 1024, 2048, 4096, 8192),
    moves=4,
    prompts="64,256,1024,2048,4096,8192",
    batches="1,2,4,8,16",
    contexts="128,2048",
)
ON_CPU = Amount(
    requests=8,
    at_once=4,
    most_tokens=40,
    killed=4,
    drained=6,
    lengths=(64, 256),
    moves=2,
    prompts="16,64",
    batches="1,2",
    contexts="32",
)


@dataclass(slots=True)
class Site:
    size: ModelSize
    amount: Amount
    out: Path
    url: str = ""
    """Of the server that runs now."""
    by_length: dict[int, Figures] = field(default_factory=lambda: defaultdict(Figures))
    """What moves cost."""
    profile: str = ""
    """The file that `llumnix profile` wrote."""

    @property
    def measured(self) -> dict[int, Figures]:
        """Of it, the lengths that all was measured of."""
        return {length: mine for length, mine in self.by_length.items() if mine.neighbours_on and mine.blocking}
