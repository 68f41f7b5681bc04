"""Blocks by NIXL, NVIDIA's library for this (an optional extra, pinned): over RDMA between machines, and within one
machine by the kernel's cross-memory attach, in host memory and on GPUs.

Found by experiment (docs/understand/adr/0002-transport.md), and obeyed here: no reads over plain TCP, where a puller
that dies can take the source along, so between machines both need a device for RDMA, and on one machine one PID
namespace; what is given up may still be written, so its blocks are quarantined; an agent has a name of its own for each
incarnation, and peers come and go one at a time; its progress thread sleeps between two looks, or it spins on a core.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from llumnix.config import NIXL_VERSION
from llumnix.transport.connection import Mapping
from llumnix.transport.memory import Region
from llumnix.transport.peers import Peers
from llumnix.transport.port import TransportError
from llumnix.transport.reader import CannotRead, LateBytes

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

RegionPlace = tuple[int, int]
"""Of a region: where it begins, and how far its blocks are apart."""

_LOOK_S = 0.0001
_LATE_LOOK_S = 0.005
_PROGRESS_US = 100
_RDMA = Path("/sys/class/infiniband")
_PTRACE = Path("/proc/sys/kernel/yama/ptrace_scope")


class NixlReader:
    """A `Reader` over one agent."""

    scheme = "nixl"
    gpu = ""
    between_gpus = True

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Tensors with the block as dimension 0. Raises TransportError when NIXL is not there or cannot take them."""
        self._regions = [Region.of_array(tensor) for tensor in tensors]
        device = tensors[0].device
        self._kind, self._device = ("VRAM", device.index or 0) if device.type == "cuda" else ("DRAM", 0)
        self.between_machines = _RDMA.is_dir() and any(_RDMA.iterdir())
        if not self.between_machines and _siblings_are_closed():
            raise TransportError("processes may not read each other here (kernel.yama.ptrace_scope)")
        self._lock = threading.Lock()  # of the agent, which knows none: calls are short
        self._peers = Peers(self._meet, self._part_from)
        self._late: list[tuple[Any, str, LateBytes]] = []
        """Reads that were given up: each holds blocks of the pool, of which there are so many."""
        self._janitor: threading.Thread | None = None
        self._closed = False
        self._agent, self._errors = _quiet_agent()
        lengths = zip(self._regions, map(len, tensors), strict=True)
        memory = [(region.base, region.stride * blocks, self._device, "") for region, blocks in lengths]
        try:
            self._registered = self._agent.register_memory(memory, self._kind)
        except self._errors as error:
            raise TransportError(f"NIXL cannot register the pool: {error!r}") from error
        places = tuple((region.base, region.stride) for region in self._regions)
        namespace = os.readlink("/proc/self/ns/pid").encode()
        self._prefix = b"" if self.between_machines else namespace + b"\0"
        self.offer = Mapping(self._prefix + self._agent.get_agent_metadata(), places, self._device)

    def pull(
        self,
        source: str,
        mapping: Mapping,
        sources: NDArray[np.uint64],
        targets: NDArray[np.uint64],
        go_on: Callable[[], None],
    ) -> int:
        """See `Reader`."""
        peer = self._peers.take(source, mapping.handle)
        left = False
        try:
            handle = self._begin(peer, mapping, sources, targets)
            try:
                while (state := self._state(handle)) == "PROC":
                    go_on()
                    time.sleep(_LOOK_S)
            except (OSError, EOFError) as end:
                left = True
                self._leave(handle, source, LateBytes(str(end)), end)
            self._release(handle)
        finally:
            if not left:
                self._peers.give_back(source)
        if state != "DONE":
            raise TransportError(f"NIXL's read ended with {state}")
        return len(targets) * sum(region.chunk_bytes for region in self._regions)

    def _begin(self, peer: str, mapping: Mapping, sources: NDArray[np.uint64], targets: NDArray[np.uint64]) -> Any:
        handle = None
        try:
            with self._lock:
                ours = self._descriptors(self.offer.regions, targets, self._device)
                theirs = self._descriptors(mapping.regions, sources, mapping.device)
                handle = self._agent.initialize_xfer("READ", ours, theirs, peer, b"")
                self._agent.transfer(handle)
        except self._errors as error:
            if handle is not None:
                self._release(handle)
            raise TransportError(f"NIXL cannot read: {error!r}") from error
        return handle

    def _leave(self, handle: Any, source: str, late: LateBytes, why: Exception) -> NoReturn:
        """To the janitor, who looks until nothing of it can land any more. Raises LateBytes."""
        with self._lock:
            self._late.append((handle, source, late))
            if self._janitor is None:
                self._janitor = threading.Thread(target=self._clean_up, name="kv-late", daemon=True)
                self._janitor.start()
        raise late from why

    def _clean_up(self) -> None:
        """Until nothing is late any more."""
        while not self._closed:
            with self._lock:
                late = list(self._late)
                if not late:
                    self._janitor = None
                    return
            for entry in late:
                handle, source, bytes_of_it = entry
                if self._state(handle) != "PROC":
                    with self._lock:
                        self._late.remove(entry)
                    self._release(handle)
                    self._peers.give_back(source)
                    bytes_of_it.over()
            time.sleep(_LATE_LOOK_S)

    def _state(self, handle: Any) -> str:
        """DONE, PROC, or what went wrong: then nothing lands any more, for the connection is gone."""
        with self._lock:
            try:
                state: str = self._agent.check_xfer_state(handle)
                return state
            except self._errors as error:
                return repr(error)

    def _release(self, handle: Any) -> None:
        with self._lock:
            try:
                self._agent.release_xfer_handle(handle)
            except self._errors as error:
                log.warning("NIXL cannot let go of a read: %r", error)

    def _meet(self, handle: bytes) -> str:
        """Its agent's name."""
        if not handle.startswith(self._prefix):
            raise CannotRead("the source is in another PID namespace, and there is no RDMA")
        with self._lock:
            try:
                return _name(self._agent.add_remote_agent(handle[len(self._prefix) :]))
            except self._errors as error:
                raise CannotRead(f"NIXL does not reach the source: {error!r}") from error

    def _part_from(self, peer: str) -> None:
        with self._lock:
            try:
                self._agent.remove_remote_agent(peer)
            except self._errors as error:
                raise TransportError(f"NIXL cannot forget a source: {error!r}") from error

    def forget(self, source: str) -> None:
        """See `Reader`."""
        self._peers.forget(source)

    def close(self) -> None:
        """See `Reader`. Whoever waits for late bytes waits no more; memory where they may land stays registered."""
        self._closed = True
        janitor = self._janitor
        if janitor is not None:
            janitor.join()
        self._peers.close()
        if not self._late:
            self._agent.deregister_memory(self._registered)

    def _descriptors(self, regions: Sequence[RegionPlace], blocks: NDArray[np.uint64], device: int) -> Any:
        rows = np.empty((len(regions) * len(blocks), 3), dtype=np.uint64)
        chunks = [region.chunk_bytes for region in self._regions]
        rows[:, 0] = np.concatenate([base + blocks * np.uint64(stride) for base, stride in regions])
        rows[:, 1] = np.repeat(np.array(chunks, dtype=np.uint64), len(blocks))
        rows[:, 2] = device
        return self._agent.get_xfer_descs(rows, mem_type=self._kind)


def _siblings_are_closed() -> bool:
    """Then cross-memory attach is not to be had, and UCX would take TCP."""
    return os.geteuid() != 0 and _PTRACE.exists() and _PTRACE.read_text().strip() != "0"


def _name(peer: str | bytes) -> str:
    return peer.decode() if isinstance(peer, bytes) else peer


def _quiet_agent() -> tuple[Any, tuple[type[Exception], ...]]:
    """An agent whose progress thread sleeps between two looks, and the errors that it raises. Raises TransportError.

    Relies on `nixl_cu13._api` making its `nixlAgentConfig` anew for each agent, and on nothing but its `pthrDelay`."""
    try:
        import nixl_cu13._api as api  # type: ignore[import-not-found,unused-ignore]
    except (ImportError, RuntimeError) as error:  # the latter: it cannot read its settings in $HOME
        raise TransportError(f"NIXL cannot be used (pip install nixl-cu13=={NIXL_VERSION}): {error}") from error
    bind = api.nixlBind
    plain = bind.nixlAgentConfig

    class Quiet(plain):  # type: ignore[misc,valid-type]
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, _PROGRESS_US if name == "pthrDelay" else value)

    errors = tuple(value for name, value in vars(bind).items() if name.startswith("nixl") and name.endswith("Error"))
    bind.nixlAgentConfig = Quiet
    try:
        return api.nixl_agent(uuid.uuid4().hex, api.nixl_agent_config(backends=["UCX"])), errors
    except (RuntimeError, *errors) as error:
        raise TransportError(f"NIXL cannot be used: {error!r}") from error
    finally:
        bind.nixlAgentConfig = plain
