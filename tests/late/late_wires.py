"""What lies between late engines, and the workers that read blocks there. It moves when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from types import SimpleNamespace
from typing import Any

import torch
from late_device import LateDevice
from late_drafts import DraftingDevice

from llumnix.engine.vllm.instance.worker import WorkerExtension
from llumnix.transport.port import BlockIds, PullResult
from llumnix.wire.base import Frame
from llumnix.wire.outbox import Mail

Posted = tuple[str, Mail]


@dataclass(slots=True, eq=False)
class LatePull:
    """Copies block by block, whenever it is told to. It ends with the last one, or once it was called off or broke."""

    source: LateDevice
    target: LateDevice
    left: list[tuple[int, int]]
    part: slice
    """Of each block: its worker has no other."""
    on_done: Callable[[PullResult], None]
    on_released: Callable[[], None]
    why: str = ""
    """It ends early."""
    late: bool = False
    """Then what is left may still land, until it is let go."""
    copied: int = 0

    def cancel(self) -> None:
        self.why = self.why or "it was cancelled"

    def copy(self, blocks: int) -> None:
        while blocks and self.left and not self.why:
            self._land()
            self.copied += 1
            blocks -= 1

    def _land(self) -> None:
        theirs, ours = self.left.pop(0)
        self.target.kv[ours, self.part] = self.source.kv[theirs, self.part]

    @property
    def over(self) -> bool:
        return bool(self.why) or not self.left

    @property
    def quarantined(self) -> bool:
        return self.late and bool(self.why)

    def end(self) -> None:
        self.on_done(PullResult(ok=not self.why, reason=self.why, bytes_read=self.copied, quarantined=self.quarantined))

    def let_go(self) -> None:
        """Its late bytes land, and they were the last."""
        while self.left:
            self._land()
        self.on_released()


@dataclass(slots=True)
class Wires:
    devices: dict[str, LateDevice] = field(default_factory=dict)
    letters: list[Posted] = field(default_factory=list)
    pulls: list[LatePull] = field(default_factory=list)
    late: list[LatePull] = field(default_factory=list)
    """Those that are over, but for bytes that may still land."""
    forgotten: list[tuple[str, str]] = field(default_factory=list)
    """By whom, and whose transport."""
    now_s: float = 1000.0

    def post(self, address: str, message: Mail) -> None:
        self.letters.append((address, message))

    def post_soon(self, addresses: Sequence[str], message: Mail) -> None:
        for address in addresses:
            self.post(address, message)

    def ship(self, address: str, message: Mail, freight: Sequence[Frame]) -> None:
        raise AssertionError("requests of late engines are made of tokens")

    def forget(self, address: str) -> None:
        pass


class LateTransport:
    """Of the worker `rank` among `ranks`: each has its share of every block."""

    def __init__(self, name: str, wires: Wires, rank: int, ranks: int) -> None:
        self._name, self._wires = name, wires
        self._part = slice(rank, None, ranks)

    def pull(
        self, source: str, source_blocks: BlockIds, target_blocks: BlockIds, timeout_s: float, **told: Any
    ) -> LatePull:
        pairs = [(int(theirs), int(ours)) for theirs, ours in zip(source_blocks, target_blocks, strict=True)]
        devices = self._wires.devices
        pull = LatePull(devices[source], devices[self._name], pairs, self._part, **told)
        self._wires.pulls.append(pull)
        return pull

    def forget(self, source: str) -> None:
        self._wires.forgotten.append((self._name, source))


class LateWorker(WorkerExtension):
    def __init__(self, name: str, wires: Wires, rank: int, ranks: int) -> None:
        self.model_runner = SimpleNamespace()
        self._device = wires.devices[name]
        self.device = torch.device("cpu")
        self.rank = rank
        self._llumnix_transport = LateTransport(name, wires, rank, ranks)  # type: ignore[assignment]
        self._llumnix_outbox = wires  # type: ignore[assignment]
        self._llumnix_control = name
        self._llumnix_pulls = {}
        self._llumnix_lock = Lock()

    # what vLLM asks at the end of a pause

    def llumnix_wait_for_device(self) -> None:
        if isinstance(self._device, DraftingDevice):
            self._device.draft()

    def synchronize_device(self) -> None: ...
    def reset_mm_cache(self) -> None: ...
    def reset_encoder_cache(self) -> None: ...
