"""Do KV blocks move rightly, fast and without harm between two processes on one device? Without an engine.

    python benchmarks/gpu_kv.py --out out/gpu              # on a GPU: under four minutes, 52 GiB of its memory
    python benchmarks/gpu_kv.py --device cpu               # the same code in seconds, with small caches

The product's own transports, pools and mailbox move blocks of KV tensors that are made exactly as vLLM 0.32 makes them.
Only torch, numpy, msgspec and pyzmq are needed, and the sources: on a machine with torch and no package index,

    pip install --no-index --no-deps --target deps wheels/*.whl       # msgspec and pyzmq, 1.1 MB
    PYTHONPATH=deps:src python benchmarks/gpu_kv.py --out out/gpu

Parts, each alone with `--parts`:

    exact      every byte, in every layout
    bandwidth  by number of tokens, by layout, by size of the staging buffers; processor time at both ends
    hostside   which part of the way is the limit
    ipc        the same bytes and speeds where the target reads the source's memory on the device
    slowdown   steps of an engine that decodes, while its process serves or receives
    hazards    what goes wrong without a fence between a pull and a step in flight, and that the fence mends it
    death      the source is killed while it is read

Ends with 1 if a block was wrong, a hazard was not as expected, nobody can tell which GPU it is, or a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from frame.arguments import at_least_one, folder
from gpu.cache import Shape
from gpu.disturbance import slowdown
from gpu.ends import Setting, Target
from gpu.exactness import exact, hazards
from gpu.load import LoadShape
from gpu.mortality import death
from gpu.rows import Row, problems, table
from gpu.speed import bandwidth, hostside, ipc

PARTS: dict[str, Callable[[Target, int], Iterator[Row]]] = {
    "exact": exact,
    "bandwidth": bandwidth,
    "hostside": hostside,
    "ipc": ipc,
    "slowdown": slowdown,
    "hazards": hazards,
    "death": death,
}
LEAST_BLOCKS = 64
"""With fewer, parts have nothing to move."""
PART_S = 60
"""A part that takes longer is broken off; what it yielded so far counts."""
TINY = Shape(layers=4, heads=4, head_size=32)
TINY_LOAD = LoadShape(layers=2, hidden=128, batch=8, python_ms=1.0)


def main() -> int:
    values = arguments()
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="kv-", dir="/tmp") as folder:
        target = Target(setting(values, Path(folder)))
        rows += machine(values)
        print(table(rows), flush=True)
        try:
            for name in values.parts:
                rows += run_part(name, target, values.blocks)
        finally:
            target.close()
    found = problems(rows)
    if values.out is not None:
        values.out.mkdir(parents=True, exist_ok=True)
        words = {"command": sys.argv, "rows": rows, "problems": found}
        (values.out / "gpu_kv.json").write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")
    print("\n" + ("; ".join(found) or "All is as it must be."))
    return 1 if found else 0


def run_part(name: str, target: Target, blocks: int) -> list[Row]:
    rows: list[Row] = []
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PART_S)
    try:
        for row in PARTS[name](target, blocks):
            rows.append({"part": name} | row)
    except (RuntimeError, OSError, EOFError) as error:  # torch's are RuntimeErrors; the other parts are worth having
        rows.append({"part": name, "error": f"{type(error).__name__}: {error}"[:400]})
    finally:
        signal.alarm(0)
    print(f"\n{table(rows)}\n({time.perf_counter() - start:.1f} s)", flush=True)
    return rows


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not over after {PART_S} s")


def machine(values: argparse.Namespace) -> list[Row]:
    on_gpu = values.device == "cuda"
    return [
        {
            "part": "machine",
            "device": torch.cuda.get_device_name(0) if on_gpu else platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "cores": len(os.sched_getaffinity(0)),
            "block_mib": round(values.shape.block_bytes / (1 << 20), 3),
            "blocks": values.blocks,
        }
    ]


def setting(values: argparse.Namespace, folder: Path) -> Setting:
    device = torch.device("cuda", 0) if values.device == "cuda" else torch.device("cpu")
    load = TINY_LOAD if values.quick else LoadShape()
    return Setting(device=device, shape=values.shape, load=load, folder=folder, quick=values.quick)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", default=",".join(PARTS), help="Some of them, in this order.")
    parser.add_argument(
        "--heads", type=at_least_one, default=32, help="KV heads: 8 as models with grouped queries have them."
    )
    parser.add_argument("--layers", type=at_least_one, default=32)
    parser.add_argument("--blocks", type=at_least_one, default=1600, help="Of each cache; 12.5 GiB of LLaMA-7B.")
    parser.add_argument("--quick", action="store_true", help="Small caches and few runs, as on a CPU.")
    parser.add_argument("--out", type=folder, help="Folder for gpu_kv.json.")
    values = parser.parse_args()
    values.parts = values.parts.split(",")
    unknown = set(values.parts) - PARTS.keys()
    if unknown:
        parser.error(f"there is no part {sorted(unknown)[0]}; there are {', '.join(PARTS)}")
    if values.blocks < LEAST_BLOCKS:
        parser.error(f"--blocks must be at least {LEAST_BLOCKS}")
    if values.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu tries the same code")
    values.quick = values.quick or values.device == "cpu"
    values.shape = TINY if values.quick else Shape(layers=values.layers, heads=values.heads)
    values.blocks = min(values.blocks, 260) if values.quick else values.blocks
    return values


if __name__ == "__main__":
    sys.exit(main())
