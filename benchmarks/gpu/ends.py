"""Two processes with caches on one device: the source serves, the target pulls, by the transports of the product."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu.cache import Cache, Shape
from gpu.load import Load, LoadShape, spread
from llumnix.engine import gpus
from llumnix.transport.cuda import CudaDriver
from llumnix.transport.mapped import MappedMemory
from llumnix.transport.port import Pool, PullResult
from llumnix.transport.reader import Reader
from llumnix.transport.sockets import SocketOptions, SocketTransport
from llumnix.transport.staging import StagedPool, pool_of
from llumnix.types import RequestId
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.outbox import Outbox
from llumnix.wire.to_instance import INSTANCE_MAIL, PullEnded, ToInstance

SECRET = b"for this measurement only"
PULL_S = 60.0
ANSWER_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    device: torch.device
    shape: Shape
    load: LoadShape
    folder: Path
    """For sockets."""
    quick: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKind:
    """What both ends have of one pull."""

    blocks: int
    layout: str = "LBNHC"
    staging_bytes: int | None = None
    """None: as the product has it, which on a CPU may be none at all."""
    on_device: bool = False
    """The target reads the source's memory where it is (CUDA IPC)."""


def open_end(kind: CacheKind, setting: Setting) -> tuple[Cache, SocketTransport]:
    cache = Cache(setting.shape, kind.blocks, kind.layout, setting.device)
    pool: Pool
    if kind.staging_bytes is None:
        pool = pool_of(cache.views, fingerprint=kind.layout)
    else:
        pool = StagedPool(cache.views, fingerprint=kind.layout, staging_bytes=kind.staging_bytes)
    readers: list[Reader] = []
    if kind.on_device:
        gpu = gpus.whole(str(torch.cuda.get_device_properties(setting.device).uuid), gpus.installed())
        readers.append(MappedMemory(cache.views, CudaDriver(), gpu=gpu, between_gpus=not gpu))
    return cache, SocketTransport(pool, SECRET, SocketOptions(folder=setting.folder, tcp_host=None), readers)


class Source:
    """In its own process: each method is an order of the target, and what it returns the answer."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._ends: dict[str, tuple[Cache, SocketTransport]] = {}
        self._load: Load | None = None
        self._late: list[Callable[[], None]] = []
        """What these write is theirs until it is written: on another stream, torch would not know."""

    def open(self, name: str, kind: CacheKind) -> str:
        cache, transport = self._ends[name] = open_end(kind, self._setting)
        cache.fill(range(kind.blocks))
        return transport.address

    def close(self, name: str) -> None:
        self._load = None  # it reads that cache
        self._ends.pop(name)[1].close()
        free_memory(self._setting.device)

    def fill(self, name: str, ids: Sequence[int], salt: int) -> None:
        self._ends[name][0].fill(ids, salt)

    def fill_late(self, name: str, ids: Sequence[int], salt: int, after_ms: float, own_stream: bool) -> None:
        """On the engine's stream, behind a step in flight that takes so long; returns at once."""
        cache = self._ends[name][0]
        self._late = [cache.write(layer, ids, salt) for layer in range(len(cache.layers))]
        cache.wait()
        with busy(self._setting.device, after_ms, own_stream):
            for write in self._late:
                write()

    def make_load(self, name: str) -> None:
        self._load = Load(self._setting.load, self._ends[name][0].layers, self._setting.device)
        self._load.steps(0.1)

    def steps(self, seconds: float) -> dict[str, float]:
        assert self._load is not None
        return spread(self._load.steps(seconds))

    def cpu_s(self) -> float:
        return own_cpu_s()


def serve(pipe: Connection, setting: Setting) -> None:
    torch.set_num_threads(1)
    source = Source(setting)
    while (order := pipe.recv()) is not None:
        number, name, *arguments = order
        pipe.send((number, getattr(source, name)(*arguments)))


class Target:
    """The main process's end. `open` gives it a cache to pull into; pulls end in a mailbox, as an instance's do."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._ended: dict[int, PullEnded] = {}
        self._news = threading.Condition()
        self._mailbox = Mailbox(f"ipc://{setting.folder}/mail", INSTANCE_MAIL, self._hear)
        self._mailbox.start()
        self._outbox = Outbox()
        self._stage = 0
        self._orders = 0
        self._random = np.random.default_rng(1)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.source = context.Process(target=serve, args=(theirs, setting), daemon=True)
        self.source.start()
        theirs.close()

    def ask(self, *order: Any) -> Any:
        """An order to the source, and its answer. Raises EOFError when it died."""
        self.begin(*order)
        return self.answer()

    def begin(self, *order: Any) -> None:
        self._orders += 1
        self._pipe.send((self._orders, *order))

    def answer(self) -> Any:
        """To the last order; answers to earlier ones, which a part that was broken off has left, go."""
        while self._pipe.poll(ANSWER_S):
            number, answer = self._pipe.recv()
            if number == self._orders:
                return answer
        raise TimeoutError(f"the source has not answered for {ANSWER_S:g} s")

    @property
    def answered(self) -> bool:
        return self._pipe.poll()

    @contextmanager
    def opened(self, kind: CacheKind) -> Iterator[Pair]:
        """Caches of this kind at both ends, until the block ends."""
        pair = Pair(self, kind)
        try:
            yield pair
        finally:
            pair.close()

    def ids(self, count: int, blocks: int) -> list[int]:
        """Block 0 is nobody's, as in vLLM."""
        drawn: list[int] = (self._random.permutation(blocks - 1)[:count] + 1).tolist()
        return drawn

    def pull(self, transport: SocketTransport, address: str, sources: list[int], targets: list[int]) -> Pulled:
        self._stage += 1
        named: dict[str, Any] = {"request": RequestId("r"), "epoch": 1, "stage": self._stage, "rank": 0}

        def done(result: PullResult) -> None:
            ended = PullEnded(**named, ok=result.ok, reason=result.reason, bytes_read=result.bytes_read)
            self._outbox.post(self._mailbox.address, ended)

        start = time.perf_counter()
        transport.pull(address, sources, targets, PULL_S, on_done=done, on_released=lambda: None)
        with self._news:
            if not self._news.wait_for(lambda: self._stage in self._ended, timeout=PULL_S + 10):
                raise TimeoutError("nobody said how a pull ended")
        return Pulled(time.perf_counter() - start, self._ended.pop(self._stage))

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it was killed, or failed
            self._pipe.send(None)
        self.source.join(10)
        self.source.kill()
        self._outbox.close()
        self._mailbox.close()

    def _hear(self, message: ToInstance) -> None:
        assert isinstance(message, PullEnded)
        with self._news:
            self._ended[message.stage] = message
            self._news.notify_all()


@dataclass(frozen=True, slots=True)
class Pulled:
    seconds: float
    """Until the mailbox had it."""
    ended: PullEnded


class Pair:
    """A cache at each end."""

    _made = 0

    def __init__(self, target: Target, kind: CacheKind) -> None:
        Pair._made += 1
        self.name = f"pair {Pair._made}"
        self.target, self.kind = target, kind
        self.address: str = target.ask("open", self.name, kind)
        self.cache, self.transport = open_end(kind, target.setting)
        self.block_bytes = target.setting.shape.block_bytes

    def ids(self, count: int) -> list[int]:
        return self.target.ids(count, self.kind.blocks)

    def blocks_of(self, tokens: int) -> int:
        """At most all but one."""
        return min(tokens // self.target.setting.shape.tokens, self.kind.blocks - 1)

    def pull(self, sources: list[int], targets: list[int]) -> Pulled:
        """Raises RuntimeError when it fails."""
        pulled = self.try_to_pull(sources, targets)
        if not pulled.ended.ok:
            raise RuntimeError(f"a pull failed: {pulled.ended.reason}")
        return pulled

    def try_to_pull(self, sources: list[int], targets: list[int]) -> Pulled:
        return self.target.pull(self.transport, self.address, sources, targets)

    def pull_any(self, count: int) -> float:
        """Seconds of a pull of so many blocks, scattered at both ends."""
        return self.pull(self.ids(count), self.ids(count)).seconds

    def close(self) -> None:
        self.transport.close()
        if self.target.source.is_alive():
            self.target.ask("close", self.name)
        del self.cache, self.transport
        free_memory(self.target.setting.device)


@contextmanager
def busy(device: torch.device, ms: float, own_stream: bool) -> Iterator[Any]:
    """What is done inside follows, on the engine's stream, a step in flight that takes so long. `own_stream`: as vLLM
    has one with CUDA graphs; else it is the default one. Gives the stream."""
    stream: Any = torch.cuda.Stream(device) if own_stream else torch.cuda.default_stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(int(ms * 1.5e6))  # type: ignore[no-untyped-call]
        yield stream


def own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
