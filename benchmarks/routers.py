"""Llumnix beside the routers that people use, before the same unmodified vLLM engines.

    python benchmarks/routers.py                                         the parties and loads below, 3 seeds
    python benchmarks/routers.py --parties all --loads all --seeds 3     everybody and everything: hours
    python benchmarks/routers.py --loads "near, bursts" --fault kill --tries 3       an engine is killed in the middle
    python benchmarks/routers.py --engines 8 --step-ms 60 --token-ms 0.6             more engines, as many cores
    python benchmarks/routers.py --loads "twice, bursts" --requests 300 --parties "smg least_load" "llumnix, classes"
    python benchmarks/routers.py --records FILE                          goes on with an earlier run, then prints

Engines are *paced* (`_paced/`): each step lasts as on a device of its own. `vllm-router` and `smg` come from the
package index (`_routers/routers.lock`) into an environment of their own, and have engines of their own, each a `vllm
serve`; `vllm serve --data-parallel-size` and Llumnix have as many. Everybody gets the same requests, as text, one party
after the other, in an order that changes with the seed; nobody sees the same prompt twice but for what a load has in
common. `llumnix, classes` is Llumnix with a file of one class, whose targets are those of `goodput`: what would miss
them is refused, and counts as failed. With `--tries`, clients ask again for what failed, as OpenAI's own does: it still
counts as failed, and takes them until they have more tokens than they had. Ratios are ours over the best of the others,
for each figure the best of them in that figure.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import msgspec
from _routers import kept, parties
from _routers.faults import FAULTS, Fault
from _routers.loads import LOADS, make
from _routers.outcome import Run, Setting, Targets, compared, figures_of, print_table
from _routers.parties import Party
from frame.arguments import at_least_one, file_in_a_folder, positive
from frame.models import add_pace_flags, paced_engine_flags
from frame.verdict import conclude
from frame.vitals import cpu_s
from rich.console import Console

from llumnix.bench.client import BenchConfig, BenchResult, bench
from llumnix.workload.workload import Workload

KV_MIB = 12  # 96 blocks of 32 tokens: about eight requests
USUAL = ("vllm-router power_of_two", "vllm-router cache_aware", "smg least_load", parties.PARALLEL, parties.OURS)
LIMIT_S = 240.0
"""For a request: longer than the slowest that ends."""


def main() -> int:
    arguments = _parse()
    _measure(arguments, arguments.done)
    alike = [run for run in arguments.done if run.setting == arguments.setting]
    figures = []
    for name in arguments.loads:
        title = name if arguments.fault is None else f"{name}, {arguments.fault}"
        runs = [run for run in alike if run.load == name]
        print_table(title, runs)
        figures += compared(title, LOADS[name], runs, arguments.fault)
    return conclude(*figures)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parties", nargs="+", default=list(USUAL), help=f"Or all: {', '.join(parties.names())}.")
    parser.add_argument("--loads", nargs="+", default=["near, bursts", "beyond, bursts"], help=f"Or all: {list(LOADS)}")
    parser.add_argument("--fault", choices=FAULTS, help="Befalls one engine when a third of the requests was sent.")
    parser.add_argument("--engines", type=at_least_one, default=4)
    parser.add_argument("--requests", type=at_least_one, default=150)
    parser.add_argument("--seeds", type=at_least_one, default=3)
    parser.add_argument("--tries", type=at_least_one, default=1, help="So often a client asks at most. Default: once.")
    parser.add_argument("--ttft-target-s", type=positive, default=2.0, help="For goodput. Default: 2.")
    parser.add_argument("--tpot-target-ms", type=positive, default=60.0, help="For goodput. Default: 60.")
    add_pace_flags(parser)
    parser.add_argument(
        "--records",
        type=file_in_a_folder,
        help="What was measured: added to, and what is there of the same sizes is not repeated.",
    )
    arguments = parser.parse_args()
    arguments.parties = _known(parser, arguments.parties, parties.names())
    arguments.loads = _known(parser, arguments.loads, list(LOADS))
    if not arguments.step_ms:
        parser.error(f"--step-ms {arguments.step_ms} is not above 0: the rates of loads are for engines of some pace")
    if arguments.requests == 1:
        parser.error("--requests 1 is too few: goodput is per second between the first and the last")
    arguments.done = _kept(parser, arguments.records)
    arguments.setting = Setting(
        fault=arguments.fault,
        tries=arguments.tries,
        engines=arguments.engines,
        requests=arguments.requests,
        step_ms=arguments.step_ms,
        token_ms=arguments.token_ms,
        targets=Targets(arguments.ttft_target_s, arguments.tpot_target_ms / 1e3),
    )
    return arguments


def _known(parser: argparse.ArgumentParser, asked: Sequence[str], known: Sequence[str]) -> list[str]:
    if asked == ["all"]:
        return list(known)
    unknown = [name for name in asked if name not in known]
    if unknown:
        parser.error(f"{unknown[0]!r} is none of {', '.join(known)}")
    return list(asked)


def _kept(parser: argparse.ArgumentParser, path: Path | None) -> list[Run]:
    """None if there is no such file yet."""
    try:
        return kept.read(path) if path is not None and path.exists() else []
    except (OSError, ValueError) as error:
        parser.error(f"--records: {error}")


def _missing(arguments: argparse.Namespace) -> set[tuple[str, int, str]]:
    """Loads, seeds and parties."""
    had = {(run.load, run.seed, run.party) for run in arguments.done if run.setting == arguments.setting}
    return set(product(arguments.loads, range(1, arguments.seeds + 1), arguments.parties)) - had


def _measure(arguments: argparse.Namespace, done: list[Run]) -> None:
    """Whatever is missing."""
    missing = _missing(arguments)
    if not missing:
        return
    pace = paced_engine_flags(arguments.step_ms, arguments.token_ms, max_model_len=2048, kv_mib=KV_MIB)
    with pace as engine_flags, ExitStack() as stack:
        flags = [*engine_flags, "--max-num-seqs", "64", "--max-num-batched-tokens", "512"]
        classes = Path(stack.enter_context(TemporaryDirectory())) / "classes.json"
        classes.write_bytes(_one_class(arguments.setting.targets))
        everybody = parties.of(arguments.parties, flags, arguments.engines, classes, stack)
        for seed, name in product(range(1, arguments.seeds + 1), arguments.loads):
            for party in _turned(everybody, seed):
                if (name, seed, party.name) not in missing:
                    continue
                sizes = (arguments.engines, arguments.requests, seed)
                workload = make(LOADS[name], *sizes, contents=len(done), step_ms=arguments.step_ms)
                figures = _run(party, workload, arguments)
                done.append(Run(name, seed, party.name, figures, arguments.setting))
                print(f"{name}, seed {seed}, {party.name}: {_short(figures)}", flush=True)
                if arguments.records is not None:
                    kept.write(arguments.records, done)


def _one_class(targets: Targets) -> bytes:
    """Everybody is of it."""
    terms = {"ttft_s": targets.ttft_s, "tpot_s": targets.tpot_s}
    return msgspec.json.encode({"classes": {"c": terms}, "others": {"classes": ["c"]}})


def _turned(everybody: Sequence[Party], seed: int) -> list[Party]:
    """Another one comes first with each seed."""
    first = seed % len(everybody)
    return [*everybody[first:], *everybody[:first]]


def _run(party: Party, workload: Workload, arguments: argparse.Namespace) -> dict[str, float]:
    with party.serving() as url:
        before_s, preempted = cpu_s(party.processes()), party.preemptions()
        result = asyncio.run(_load(party, url, workload, arguments.fault, arguments.tries))
        used_s = cpu_s(party.processes()) - before_s
        preemptions = max(0, party.preemptions() - preempted)
    targets = arguments.setting.targets
    return figures_of(result.records.requests, targets, max(0.0, used_s), preemptions, result.asked_again)


async def _load(party: Party, url: str, workload: Workload, fault: Fault | None, tries: int) -> BenchResult:
    """Puts it there; the fault comes with the request that ends the first third."""
    config = BenchConfig(url=url, model="tiny", text=True, timeout_s=LIMIT_S, tries=tries)
    console = Console(stderr=True, quiet=True)
    if fault is None:
        return await bench(workload, config, console)
    at_s = workload.requests[len(workload.requests) // 3].arrival_s
    over = Event()
    async with asyncio.TaskGroup() as group:
        loaded = group.create_task(bench(workload, config, console))
        loaded.add_done_callback(lambda _: over.set())
        await asyncio.sleep(at_s)
        await asyncio.to_thread(party.hit, fault, over)
    return loaded.result()


def _short(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())


if __name__ == "__main__":
    sys.exit(main())
