"""What a target between two tokens, roles, and adaptive roles are worth: goodput, in the simulator.

    python benchmarks/roles.py

Goodput is the largest rate at which nine of ten requests have their first token and their tokens in time, over all
seeds together. Every system gets the same requests: all instances mixed (steps of up to 512, 1,024 or 2,048 tokens),
mixed with a target, so many instances for prompts and the rest for tokens without a target (`3P`) and with one
(`3P soft`), and adaptive roles, which begin mixed and have a minute before anything is counted. `shift` is one third
each of azure-conv, of short prompts with long outputs, at 1.5 times the rate, and of long prompts with short outputs,
at 0.75 times: in each, the split that is best for it alone carries a rate of 40 and more, and no split is best in two.
Instances are simulated A100s with an 8B model with grouped queries (`gqa`), or a 7B model with full attention (`mha`).
They read their mail between two steps, as live: where prompts are computed, that is what a hand-over waits for.

Exit code 1 if adaptive roles fall behind the best of all others in hindsight in a cell, or if they are not worth what
they should be, against mixed instances where tokens must be fast, and against any fixed choice where the load shifts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context

import msgspec
from _placement.loads import grouped_queries
from frame.arguments import at_least_one, positive, whole
from frame.parts import refuse_repeats
from frame.verdict import Figure, at_least, conclude
from policy_comparison import workload

from llumnix.config import PolicyConfig
from llumnix.roles_config import RolesConfig
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import Workload, load_workload

INSTANCES = 8
SERVED_IN_TIME = 0.9
STEP = 1.04
"""Between two rates that are tried."""
WARM_UP_S = 75.0
ADAPTIVE, MIXED = "adaptive", "mixed"
LONG_PROMPTS = "long prompts"
"""With short outputs, as azure-code's, but steady: of azure-code's own bursts no system has nine of ten in time."""
SHIFT = (("azure-conv", 1.0), ("S-L", 1.5), (LONG_PROMPTS, 0.75))
"""Each at so many times the rate."""


class Cell(msgspec.Struct, frozen=True):
    load: str
    profile: str
    ttft_s: float
    tpot_s: float
    lowest: float
    highest: float
    """Rates to look between."""

    def __str__(self) -> str:
        return f"{self.load} on {self.profile}, TTFT ≤ {self.ttft_s:g} s, TPOT ≤ {self.tpot_s * 1e3:g} ms"


CELLS = (
    Cell("azure-conv", "gqa", 1.0, 0.030, 24, 54),
    Cell("azure-conv", "gqa", 1.0, 0.050, 30, 60),
    Cell("azure-conv", "mha", 1.0, 0.050, 14, 32),
    Cell("shift", "gqa", 1.0, 0.030, 16, 44),
    Cell(LONG_PROMPTS, "gqa", 1.0, 0.030, 12, 44),
)


class Task(msgspec.Struct, frozen=True):
    cell: Cell
    system: str
    for_prompts: int = 0
    soft: bool = False
    step_tokens: int = 2048
    seeds: int = 1
    measured_s: float = 60.0

    @property
    def roles(self) -> RolesConfig:
        target_ms = self.cell.tpot_s * 1e3
        if self.system == ADAPTIVE:
            return RolesConfig(roles="adaptive", ttft_target_ms=self.cell.ttft_s * 1e3, tpot_target_ms=target_ms)
        rest = INSTANCES - self.for_prompts if self.for_prompts else 0
        return RolesConfig(
            prefill_instances=self.for_prompts, decode_instances=rest, tpot_target_ms=target_ms if self.soft else 0.0
        )


def tasks_of(cell: Cell, seeds: int, measured_s: float, quick: bool) -> list[Task]:
    task = partial(Task, cell, seeds=seeds, measured_s=measured_s)
    tasks = [task(ADAPTIVE)]
    for tokens in (2048,) if quick else (512, 1024, 2048):
        tasks.append(task(f"{MIXED} {tokens}", step_tokens=tokens))
    tasks.append(task(f"{MIXED} soft", soft=True))
    for k in range(3, 6) if quick else range(1, INSTANCES):
        tasks += [task(f"{k}P", k), task(f"{k}P soft", k, soft=True)]
    return tasks


def profile_of(task: Task) -> Profile:
    profile = grouped_queries(24_000) if task.cell.profile == "gqa" else load_profile("a100-llama-7b")
    return profile.with_scheduler(max_num_batched_tokens=task.step_tokens)


@cache
def requests_of(load: str, rate: float, seed: int, measured_s: float) -> Workload:
    if load != "shift":
        return steady(load, rate, seed, measured_s)
    rows, begin_s = [], 0.0
    for name, times in SHIFT:
        part = steady(name, times * rate, seed, measured_s).requests
        rows += [
            msgspec.structs.replace(each, id=f"{name}-{each.id}", arrival_s=begin_s + each.arrival_s) for each in part
        ]
        begin_s = rows[-1].arrival_s + 1 / rate
    return Workload(name="shift", requests=tuple(rows))


def requests_at(rate: float, measured_s: float) -> int:
    return int(rate * (WARM_UP_S + measured_s))


def steady(load: str, rate: float, seed: int, measured_s: float) -> Workload:
    requests = requests_at(rate, measured_s)
    if load == LONG_PROMPTS:
        return load_workload(f"poisson:rate={rate:g},prompt=exp2000,output=exp26,requests={requests}", seed=seed)
    return workload(load, rate, seed, requests)


def in_time(task: Task, rate: float) -> float:
    """Share of the requests, over all seeds."""
    counted = good = 0
    for seed in range(task.seeds):
        load = sim_requests(requests_of(task.cell.load, rate, seed, task.measured_s))
        policy = PolicyConfig(roles=task.roles)
        setup = RunSetup(instances=INSTANCES, profile=profile_of(task), policy=policy, reads_between_steps=True)
        simulate(load, setup)
        measured = [request for request in load if request.arrival_s >= WARM_UP_S]
        counted += len(measured)
        good += sum(is_good(request, task.cell) for request in measured)
    return good / counted


def is_good(request: SimRequest, cell: Cell) -> bool:
    first_s = request.first_token_s - request.arrival_s
    rest_s = request.finish_s - request.first_token_s
    return first_s <= cell.ttft_s and rest_s <= cell.tpot_s * max(1, request.output_tokens - 1)


def goodput(task: Task) -> tuple[Task, float]:
    """By bisection: a higher rate is never served better."""
    low, high = task.cell.lowest, task.cell.highest
    if in_time(task, low) < SERVED_IN_TIME:
        return task, 0.0
    while high / low > STEP:
        middle = round((low * high) ** 0.5, 2)
        if in_time(task, middle) >= SERVED_IN_TIME:
            low = middle
        else:
            high = middle
    if high == task.cell.highest and in_time(task, high) >= SERVED_IN_TIME:
        low = high  # maybe more: nothing higher is tried
    print(f"{task.cell}, {task.system}: {low:g}", flush=True)
    return task, low


def verdict(cell: Cell, found: dict[str, float]) -> list[Figure]:
    print(f"\n{cell}: goodput in requests/s")
    for system, rate in sorted(found.items(), key=lambda each: -each[1]):
        print(f"  {system:12}{rate:7.2f}")
    ours, others = found[ADAPTIVE], {name: rate for name, rate in found.items() if name != ADAPTIVE}
    mixed = max((rate for name, rate in others.items() if name.startswith(MIXED)), default=None)
    fixed = max((rate for name, rate in others.items() if name[0].isdigit()), default=None)
    best = max(others.values(), default=None)
    figures = [Figure(f"{cell}: adaptive / best in hindsight", ours / best if best else None, at_least(0.97))]
    if cell.tpot_s <= 0.030 and cell.load != "shift":
        figures.append(Figure(f"{cell}: adaptive / best mixed", ours / mixed if mixed else None, at_least(1.15)))
    if cell.load == "shift":
        figures.append(Figure(f"{cell}: adaptive / best fixed split", ours / fixed if fixed else None, at_least(1.3)))
    return figures


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--cells",
        nargs="+",
        type=whole,
        choices=range(len(CELLS)),
        default=range(len(CELLS)),
        help="By number, from 0.",
    )
    parser.add_argument("--seeds", type=at_least_one, default=2)
    parser.add_argument("--measured-s", type=positive, default=60.0, help="Of virtual time, after the warm-up.")
    parser.add_argument("--all", action="store_true", help="Every split, and mixed instances with smaller steps.")
    parser.add_argument("--systems", nargs="+", help="Only these, adaptive among them: adaptive '4P soft'.")
    parser.add_argument("--jobs", type=at_least_one, default=1)
    arguments = parser.parse_args()
    arguments.cells = [CELLS[number] for number in arguments.cells]
    arguments.tasks = [
        task
        for cell in arguments.cells
        for task in tasks_of(cell, arguments.seeds, arguments.measured_s, not arguments.all)
    ]
    if arguments.systems:
        known = dict.fromkeys(task.system for task in arguments.tasks)
        if unknown := [system for system in arguments.systems if system not in known]:
            parser.error(f"--systems: {unknown[0]!r} is none of {', '.join(known)}")
        if ADAPTIVE not in arguments.systems:
            parser.error(f"--systems must have {ADAPTIVE}, which the others are compared with")
        arguments.tasks = [task for task in arguments.tasks if task.system in arguments.systems]
    for cell in arguments.cells:
        loads = [name for name, _ in SHIFT] if cell.load == "shift" else [cell.load]
        refuse_repeats(parser, loads, requests_at(cell.highest, arguments.measured_s), arguments.seeds)
    return arguments


def main() -> int:
    arguments = _parse()
    cells: list[Cell] = arguments.cells
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        results: Sequence[tuple[Task, float]] = list(pool.map(goodput, arguments.tasks))
    figures = [
        figure
        for cell in cells
        for figure in verdict(cell, {task.system: rate for task, rate in results if task.cell == cell})
    ]
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
