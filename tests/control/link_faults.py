"""What a random walk does to the mail of a world, whatever else is in that."""

from __future__ import annotations

import random
from typing import Any, Protocol


class Linked(Protocol):
    link: list[Any]
    """Mail on its way, in no order."""

    def deliver(self, place: int, *, keep: bool = False) -> None:
        """With `keep` it will come a second time."""


def double(world: Linked, rng: random.Random) -> None:
    if world.link:
        world.deliver(rng.randrange(len(world.link)), keep=True)


def lose(world: Linked, rng: random.Random) -> None:
    if world.link:
        world.link.pop(rng.randrange(len(world.link)))
