"""A Ray cluster of several nodes on this machine, for tests: a program that obeys lines on stdin, one answer line each.

`address`, `add NAME CPUS`, `kill NAME` (as if its power was cut), `drain NAME SECONDS` (it is announced that its power
will be cut), `groups` (placement groups that hold a place or wait for one). It ends, with all nodes, when stdin does.
Ray's files are below RAY_TMPDIR, whose path must be short.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.util import placement_group_table

ANSWER = "=>"
"""Begins our lines; others are Ray's own."""

_QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 200,
    "health_check_failure_threshold": 3,
}


_PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]


class Nodes:
    def __init__(self) -> None:
        (Path(os.environ["RAY_TMPDIR"]) / "ray").mkdir()
        head = {"num_cpus": 0, "include_dashboard": False, "node_name": "head", "_system_config": _QUICK_TO_NOTICE}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: dict[str, Any] = {}
        ray.init(self._cluster.address, configure_logging=False, log_to_driver=False)

    def address(self) -> str:
        address: str = self._cluster.address
        return address

    def add(self, name: str, cpus: str) -> str:
        self._nodes[name] = self._cluster.add_node(num_cpus=int(cpus), node_name=name)
        return "added"

    def kill(self, name: str) -> str:
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)
        return "killed"

    def drain(self, name: str, seconds: str) -> bool:
        """As a cloud announces that it takes a machine back."""
        node = self._nodes[name].node_id
        client = ray._raylet.GcsClient(address=self._cluster.address)  # type: ignore[attr-defined]
        deadline_ms = int((time.time() + float(seconds)) * 1e3)
        accepted, _why = client.drain_node(node, _PREEMPTION, "taken back", deadline_ms)
        return bool(accepted)

    def groups(self) -> int:
        return sum(group["state"] != "REMOVED" for group in placement_group_table().values())

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


def main() -> None:
    nodes = Nodes()
    try:
        for line in sys.stdin:
            order, *words = line.split()
            print(ANSWER, getattr(nodes, order)(*words), flush=True)
    finally:
        nodes.close()


if __name__ == "__main__":
    main()
