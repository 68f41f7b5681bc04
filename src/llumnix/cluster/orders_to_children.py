"""What the launcher's children are told when they start, by what `llumnix serve` was told."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path

from llumnix.cluster.environment import engine_flags, workers_per_instance
from llumnix.cluster.nursery_messages import LoadEngine
from llumnix.cluster.ports import numeric, own_address, reserve_ports
from llumnix.cluster.scheduler_process import SchedulerSpec
from llumnix.flags import ServeArguments
from llumnix.wire.addresses import AddressBook, between_machines, on_one_machine, ports_needed
from llumnix.wire.curve import CurveKeys


def address_book(arguments: ServeArguments, run_dir: Path, stack: ExitStack) -> AddressBook:
    """Unix sockets; with Ray, ports that stay reserved until `stack` ends, and fresh keys. Raises UsageError."""
    cluster = arguments.cluster
    if cluster.launcher == "local":
        return on_one_machine(run_dir, arguments.front_ends)
    host = numeric(cluster.cluster_address) if cluster.cluster_address else own_address(cluster.ray_address)
    held = [stack.enter_context(sock) for sock in reserve_ports(host, ports_needed(arguments.front_ends))]
    return between_machines(run_dir, host, [sock.getsockname()[1] for sock in held], CurveKeys.make())


def load_engine(arguments: ServeArguments, model: str, node: str, book: AddressBook, log_dir: str | None) -> LoadEngine:
    """To the nursery."""
    return LoadEngine(
        engine=arguments.engine,
        engine_flags=engine_flags(arguments),
        model=model,
        tiny_model=arguments.model is None and model != "",
        node=node,
        book=book,
        log_dir=log_dir,
        secret=secrets.token_bytes(32),
        policy=arguments.policy,
        migration=arguments.migration,
        cluster=arguments.cluster,
        classes=arguments.classes,
        workers=workers_per_instance(arguments),
    )


def scheduler_spec(arguments: ServeArguments, book: AddressBook) -> SchedulerSpec:
    return SchedulerSpec(
        book=book,
        policy=arguments.policy,
        migration=arguments.migration,
        cluster=arguments.cluster,
        scaling=arguments.scaling,
    )
