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
    needed = _in_words(needs, sorted(needs))
    return f"No node of the Ray cluster can hold an instance, which needs {needed}: {_largest(nodes, needs)}."


def why_waiting(nodes: Sequence[Node], needs: Resources) -> str:
    """Why an instance has no place yet, in half a sentence: another must end, or a larger node come."""
    lacking = "has that free"
    if why_impossible(nodes, needs) is not None:
        lacking = f"is that large: {_largest(nodes, needs)}"
    return f"it needs {_in_words(needs, sorted(needs))}, and no node {lacking}"


def _largest(nodes: Sequence[Node], needs: Resources) -> str:
    names = sorted(needs)
    largest = max(nodes, key=lambda node: ([node.total.get(name, 0.0) for name in names[::-1]], node.id), default=None)
    return "there is none" if largest is None else f"the largest has {_in_words(largest.total, names)}"


def _in_words(resources: Resources, names: Sequence[str]) -> str:
    return " and ".join(f"{resources.get(name, 0.0):g} {name}" for name in names)
