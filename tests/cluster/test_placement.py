"""On which node of a Ray cluster the next instance goes."""

from __future__ import annotations

import pytest

from llumnix.cluster.ray.placement import Node, choose_node, why_impossible, why_waiting

NEEDS = {"CPU": 1.0, "GPU": 2.0}


def node(name: str, cpus: float = 8, gpus: float = 8, instances: int = 0, free_gpus: float | None = None) -> Node:
    free = {"CPU": cpus, "GPU": gpus if free_gpus is None else free_gpus}
    return Node(name, {"CPU": cpus, "GPU": gpus}, free, instances)


@pytest.mark.parametrize(("spread", "chosen"), [(True, "few"), (False, "many")])
def test_spread_goes_where_few_are_and_pack_where_many_are(spread: bool, chosen: str) -> None:
    nodes = [node("many", instances=3), node("some", instances=2), node("few", instances=1)]
    assert choose_node(nodes, NEEDS, spread) == chosen


@pytest.mark.parametrize("spread", [True, False])
def test_equals_are_told_apart_by_free_cpus_then_by_id(spread: bool) -> None:
    assert choose_node([node("b"), node("c", cpus=9), node("a")], NEEDS, spread) == "c"
    assert choose_node([node("b"), node("a")], NEEDS, spread) == "a"


@pytest.mark.parametrize("spread", [True, False])
def test_node_without_room_is_passed_over(spread: bool) -> None:
    nodes = [node("full", free_gpus=1), node("free", instances=1), node("no-cpus", cpus=0.5)]
    assert choose_node(nodes, NEEDS, spread) == "free"


def test_nobody_when_there_is_no_room_anywhere() -> None:
    assert choose_node([node("full", free_gpus=1)], NEEDS, True) is None
    assert choose_node([], NEEDS, False) is None


def test_full_cluster_is_not_an_impossible_one() -> None:
    assert why_impossible([node("full", free_gpus=0)], NEEDS) is None


def test_impossible_says_what_is_needed_and_what_there_is() -> None:
    assert why_impossible([node("a", gpus=1), node("b", gpus=0, cpus=64)], NEEDS) == (
        "No node of the Ray cluster can hold an instance, which needs 1 CPU and 2 GPU: the largest has 8 CPU and 1 GPU."
    )


def test_whoever_waits_says_whether_for_another_to_end_or_for_a_node() -> None:
    wanted = "it needs 1 CPU and 2 GPU, and no node"
    assert why_waiting([node("full", free_gpus=0)], NEEDS) == f"{wanted} has that free"
    assert why_waiting([node("a", gpus=0)], NEEDS) == f"{wanted} is that large: the largest has 8 CPU and 0 GPU"
    assert why_waiting([], NEEDS) == f"{wanted} is that large: there is none"


def test_cluster_without_nodes() -> None:
    assert str(why_impossible([], {"CPU": 1.0})).endswith("which needs 1 CPU: there is none.")
