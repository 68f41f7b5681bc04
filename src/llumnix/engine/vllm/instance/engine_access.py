"""What a llumlet's driver uses of the engine core that it lives in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.engine import EngineCoreOutputs

from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.workers import Workers
from llumnix.wire.base import Frame, InstanceInfo
from llumnix.wire.outbox import Mail


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAccess:
    info: InstanceInfo
    scheduler: MigrationSupport
    structured_output: Any
    workers: Workers
    pins: str
    """Why no request of this engine can move; empty if they can."""
    has_adapter: Callable[[int], bool]
    """Whether requests may use the LoRA adapter with this id."""
    post: Callable[[str, Mail], None]
    post_soon: Callable[[Sequence[str], Mail], None]
    """For messages that nobody stands still for."""
    ship: Callable[[str, Mail, Sequence[Frame]], None]
    """For messages with megabytes beside them, which nothing else waits behind."""
    forget: Callable[[str], None]
    """Closes the way to a mailbox whose owner is gone."""
    put_output: Callable[[tuple[int, EngineCoreOutputs]], None]
    """vLLM's output queue: what is put there leaves after all earlier tokens and before all later ones."""
    wake_at: Callable[[float], None]
    """Asks for a `tick` at that time."""
    clock: Callable[[], float]
