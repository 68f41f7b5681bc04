"""How fast blocks move, and what serving them costs the process that serves.

    python benchmarks/transport.py [--quick]

First table: GB/s of one pull from another process, blocks in random order on both ends, beside a plain copy of
the same blocks in one thread (the limit of the memory, same run). The best of several, since a busy machine only
ever slows a run down.

Second table: a Python thread (stand-in for the decode loop: pure Python, the worst case for the GIL) counts
steps of about a millisecond while its process serves pulls without a pause. The control is the same while
another process serves: what it loses there is processor and memory time, the rest is the GIL. On a busy machine
the more telling figure is the user time of the serving thread per GiB: the kernel's copy is system time, so for
plain pools this is the Python that holds the GIL (for staged pools also torch's copies, which do not).
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from frame.child import child
from frame.verdict import Figure, conclude

from llumnix.transport.memory import MemoryPool
from llumnix.transport.port import Batches, BlockIds, Pool
from llumnix.transport.sockets import SocketOptions, SocketTransport

KIB, MIB = 1 << 10, 1 << 20
SECRET = b"for this benchmark only"
WAYS = ("unix", "tcp", "staged unix", *(("nixl",) if importlib.util.find_spec("nixl_cu13") else ()))
DEADLINE_S = 60.0


def make_pool(way: str, memory: np.ndarray) -> Pool:
    if way.startswith("staged"):
        import torch  # only here: the other rows must not pay for its import

        from llumnix.transport.staging import StagedPool

        torch.set_num_threads(1)
        return StagedPool([torch.from_numpy(memory.view(np.int64))], fingerprint="benchmark")
    return MemoryPool.of_arrays([memory], fingerprint="benchmark")


class MeteredPool:
    """Serves as `pool` does and meters the threads that read."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.shape = pool.shape
        self.streams = pool.streams
        self.writing = pool.writing
        self.user_s: dict[int, float] = {}

    def reading(self, blocks: BlockIds, until: float) -> Batches:
        yield from self._pool.reading(blocks, until)
        self.user_s[threading.get_ident()] = resource.getrusage(resource.RUSAGE_THREAD).ru_utime


def make_transport(way: str, pool: Pool, memory: np.ndarray, folder: str) -> SocketTransport:
    options = SocketOptions() if way == "tcp" else SocketOptions(folder=Path(folder), tcp_host=None)
    if way != "nixl":
        return SocketTransport(pool, SECRET, options)
    import torch

    from llumnix.transport.nixl import NixlReader

    return SocketTransport(pool, SECRET, options, (NixlReader([torch.from_numpy(memory)]),))


def serve(pipe: Connection, way: str, shape: tuple[int, int], folder: str) -> None:
    """The source process: serves, and counts steps of the stand-in for a decode loop on request."""
    memory = np.ones(shape, np.uint8)
    pool = MeteredPool(make_pool(way, memory))
    transport = make_transport(way, pool, memory, folder)
    pipe.send(transport.address)
    while (seconds := pipe.recv()) is not None:
        before = sum(pool.user_s.values())
        steps = decode_steps(seconds)
        pipe.send((steps, sum(pool.user_s.values()) - before))
    transport.close()


def decode_steps(seconds: float) -> list[float]:
    """Durations of steps of pure Python, made one after the other for `seconds`."""
    steps = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        total = 0
        for number in range(12_000):
            total += number
        steps.append(time.perf_counter() - start)
    return steps


@contextmanager
def source(way: str, shape: tuple[int, int], folder: str) -> Iterator[tuple[str, Connection]]:
    with child(serve, way, shape, folder) as (address, pipe, _):
        yield address, pipe


def pull_once(target: SocketTransport, address: str, sources: np.ndarray, targets: np.ndarray) -> float:
    pull = target.pull(address, sources, targets, DEADLINE_S, on_done=lambda _: None, on_released=lambda: None)
    result = pull.wait(DEADLINE_S + 1)
    if result is None or not result.ok:
        raise SystemExit(f"a pull failed: {result}")
    return result.seconds


def bandwidth(total: int, block: int, folder: str, runs: int) -> list[float]:
    """GB/s of each way, then of the plain copy."""
    count = total // block
    draw = np.random.default_rng(0)
    sources, targets = draw.permutation(count), draw.permutation(count)
    memory = np.zeros((count, block), np.uint8)
    rates = []
    for way in WAYS:
        memory[:] = 0
        with source(way, memory.shape, folder) as (address, _):
            target = make_transport(way, make_pool(way, memory), memory, folder)
            pull_once(target, address, sources, targets)  # opens the connection, touches the memory
            seconds = [pull_once(target, address, sources, targets) for _ in range(runs)]
            target.close()
        assert memory.min() == 1
        rates.append(total / min(seconds) / 1e9)
    other = np.ones_like(memory)
    pairs = list(zip(sources.tolist(), targets.tolist(), strict=True))
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        for here, there in pairs:
            memory[there] = other[here]
        seconds.append(time.perf_counter() - start)
    return [*rates, total / min(seconds) / 1e9]


def slow_down(way: str, block: int, folder: str, seconds: float) -> list[str]:
    """Steps per second of the busy thread: undisturbed, while another process serves, while its own does."""
    shape = (64 * MIB // block, block)
    draw = np.random.default_rng(0)
    sources, targets = draw.permutation(shape[0]), draw.permutation(shape[0])
    with source(way, shape, folder) as (busy, pipe), source(way, shape, folder) as (other, _):
        memory = np.zeros(shape, np.uint8)
        target = make_transport(way, make_pool(way, memory), memory, folder)
        figures = []
        for address in (None, other, busy):
            pipe.send(seconds)
            pulled = 0
            while not pipe.poll(0 if address else None):
                pull_once(target, address or other, sources, targets)
                pulled += 1
            steps, user_s = pipe.recv()
            worst = 1e3 * float(np.quantile(steps, 0.99))
            figures.append((len(steps) / seconds, worst, pulled * 64 * MIB / seconds / 1e9))
        target.close()
    user_ms_per_gib = 1e3 * user_s / (pulled * 64 / 1024)  # of the last round, in which the busy process served
    alone, control, own = figures
    return [
        f"{alone[0]:.0f}",
        f"{control[0] / alone[0]:.2f}",
        f"{own[0] / alone[0]:.2f}",
        f"{alone[1]:.1f} / {control[1]:.1f} / {own[1]:.1f}",
        f"{control[2]:.1f} / {own[2]:.1f}",
        f"{user_ms_per_gib:.0f}",
    ]


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Bandwidth of the transports, and what serving costs the decode loop.")
    parser.add_argument("--quick", action="store_true", help="small sizes only, few runs")
    quick = parser.parse_args().quick
    figures = []
    with tempfile.TemporaryDirectory(prefix="kv-") as folder:
        print_row("total", "block", *(f"{way} GB/s" for way in WAYS), "copy GB/s")
        print_row(*["---"] * (len(WAYS) + 3))
        for total, runs in ((1, 15), (16, 9), *(() if quick else ((256, 5),))):
            for block in (16, 64, 256):
                rates = bandwidth(total * MIB, block * KIB, folder, runs)
                print_row(f"{total} MiB", f"{block} KiB", *(f"{rate:.1f}" for rate in rates))
                where = f"{total} MiB in blocks of {block} KiB"
                figures += [
                    Figure(f"{way}, {where}", rate, unit="GB/s")
                    for way, rate in zip((*WAYS, "copy"), rates, strict=True)
                ]
        print()
        print_row(
            "way",
            "block",
            "steps/s alone",
            "ratio, another serves",
            "ratio, serves itself",
            "p99 step ms",
            "GB/s served",
            "user ms per GiB",
        )
        print_row(*["---"] * 8)
        for way in WAYS:
            for block in (16, 256):
                print_row(way, f"{block} KiB", *slow_down(way, block * KIB, folder, 1.0 if quick else 3.0))
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
