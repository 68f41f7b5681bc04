"""On which machine of a Ray cluster the next instance goes: pure, from what the machines have free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Resources = Mapping[str, float]
"""Ray's names: CPU, GPU, …"""


@dataclass(frozen=True, slots=True)
class Node:
    id: str
    total: Resources
    free: Resources
    instances: int
    """Of this server, those included that are on their way."""


def fits(needs: Resources, has: Resources) -> bool:
    return all(has.get(name, 0.0) >= amount for name, amount in needs.items())


def choose_node(nodes: Sequence[Node], needs: Resources, spread: bool) -> str | None:
    """The node for the next instance: the one with the fewest (spread), or the most (pack), that has room.

    Ties: the most free CPUs, then by id. None when no node has room.
    """
    sign = 1 if spread else -1
    candidates = [node for node in nodes if fits(needs, node.free)]
    candidates.sort(key=lambda node: (sign * node.instances, -node.free.get("CPU", 0.0), node.id))
    return candidates[0].id if candidates else None


def why_impossible(nodes: Sequence[Node], needs: Resources) -> str | None:
    """A sentence if no node could hold an instance even if it were empty; None if one could."""
    if any(fits(needs, node.total) for node in nodes):
        return None
    names = sorted(needs)
    largest = max(nodes, key=lambda node: ([node.total.get(name, 0.0) for name in names[::-1]], node.id), default=None)
    has = "there is none" if largest is None else f"the largest has {in_words(largest.total, names)}"
    return f"No node of the Ray cluster can hold an instance, which needs {in_words(needs, names)}: {has}."


def in_words(resources: Resources, names: Sequence[str]) -> str:
    return " and ".join(f"{resources.get(name, 0.0):g} {name}" for name in names)
