"""`llumnix simulate`: a workload on a simulated cluster, with the records of a live run."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import inf, lcm

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from llumnix.classes_file import OTHERS, read_classes
from llumnix.config import MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.config_flags import add_flags, build
from llumnix.decision_log import written_at_once
from llumnix.errors import UsageError, refused_as
from llumnix.flags import refuse_what_does_nothing
from llumnix.journal.entries import JournalEntry
from llumnix.paths import a_path, path_text
from llumnix.policy.catalogue import find_policy
from llumnix.policy.classes import Classes
from llumnix.report.pictures import require_matplotlib
from llumnix.report.records import REQUESTS_CSV, Records, read_records, write_records
from llumnix.report.summary import SUMMARY_JSON, Fact, print_summary, summarize, write_summary
from llumnix.roles_config import RolesConfig
from llumnix.sim.class_summary import print_class_summaries, summarize_classes, write_class_summaries
from llumnix.sim.compare import compare, print_comparison, write_comparison
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.faults import parse_fault
from llumnix.sim.outcome import Outcome
from llumnix.sim.profiles.file import load_profile, profile_names
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import Workload, load_workload

MOST_INSTANCES = 4096

MOST_CUT = 0.01
"""Share of requests that may be cut without being asked."""

EXAMPLE = "llumnix simulate --workload azure-conv --instances 12 --out runs/first"

SHORTEST_SAMPLE_S = 0.001
"""Between two rows of the time series; below, the rows outnumber everything else."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `llumnix simulate`."""
    parser.description = "Run a workload on a simulated cluster: the live policy and control code in virtual time."
    parser.add_argument("--workload", help="a generator with parameters, a trace by name, or a file: S-S?rate=32")
    parser.add_argument("--instances", type=int, help="instances at the start")
    parser.add_argument("--out", type=a_path, help="directory for records, summary and pictures")
    parser.add_argument(
        "--profile", default="a10-llama-7b", help=f"a TOML file, or one of {', '.join(profile_names())}"
    )
    parser.add_argument("--rate", type=float, help="requests per second, instead of the workload's own")
    parser.add_argument("--requests", type=int, help="how many requests, instead of the workload's own")
    parser.add_argument("--seed", type=int, help="seed of all random numbers, instead of the workload's own")
    parser.add_argument("--classes", type=path_text, metavar="FILE", help="classes and tenants, as for `llumnix serve`")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        help="crash@60:3, stall@60+5:3, hang@60+300:3, slow@60+30x2:3, slow-link@60+30:10",
    )
    parser.add_argument(
        "--sample-s", type=float, default=1.0, help="seconds between rows of instances.csv (1; 0: none)"
    )
    parser.add_argument(
        "--step-cost-error",
        type=float,
        default=0.0,
        help="spread of the factors by which instances misjudge what their steps cost (0: none; 0.2: some 20 %%)",
    )
    parser.add_argument(
        "--decision-log", type=a_path, metavar="FILE", help="write down each decision, for `llumnix explain --log FILE`"
    )
    parser.add_argument("--plot", action="store_true", help="draw pictures of the run, too")
    parser.add_argument(
        "--compare", type=a_path, help="records of a live run: replay them, show predicted beside measured"
    )
    parser.add_argument("--scale", action="store_true", help="start and drain instances by load (see the flags below)")
    add_flags(parser, PolicyConfig)
    add_flags(parser, MigrationConfig)
    add_flags(parser, ScalingConfig)


def run(args: argparse.Namespace) -> int:
    """Carries out `llumnix simulate`. Returns 0; raises UsageError for bad input."""
    _require_what_it_needs(args)
    if args.plot:
        require_matplotlib()
    workload = _workload(args)
    setup = _setup(args, workload)
    if args.compare is None:
        workload = _cut_a_few(workload, setup)
    measured = read_records(args.compare) if args.compare is not None else None
    with refused_as(f"Cannot write to --out {args.out}"):
        args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if args.decision_log is None else written_at_once(args.decision_log) as listener:
        outcome = _simulate(workload, setup, listener)
    records = outcome.records()
    _write(args, workload, setup, records)
    if setup.classes is not None:
        fared = summarize_classes(outcome.requests, setup.classes)
        write_class_summaries(args.out, fared)
        print_class_summaries(fared)
    if measured is not None:
        comparison = compare(measured, records)
        write_comparison(args.out / "compare.md", comparison)
        print_comparison(comparison)
    return 0


def _require_what_it_needs(args: argparse.Namespace) -> None:
    given = {
        "--workload": args.workload or args.compare,
        "--instances": args.instances,
        "--out": args.out,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} must be given, as in: {EXAMPLE}")


def _workload(args: argparse.Namespace) -> Workload:
    text = str(args.compare / REQUESTS_CSV) if args.workload is None else args.workload
    workload = load_workload(text, rate=args.rate, requests=args.requests, seed=args.seed)
    if workload.left_out:
        print(workload.left_out, file=sys.stderr)
    return workload


def _setup(args: argparse.Namespace, workload: Workload) -> RunSetup:
    if not 1 <= args.instances <= MOST_INSTANCES:
        raise UsageError(f"--instances must be between 1 and {MOST_INSTANCES}, not {args.instances}.")
    if args.sample_s != 0 and not SHORTEST_SAMPLE_S <= args.sample_s < inf:
        raise UsageError(f"--sample-s must be 0 or at least {SHORTEST_SAMPLE_S:g}, not {args.sample_s:g}.")
    if not 0 <= args.step_cost_error <= 2:
        raise UsageError(f"--step-cost-error must be between 0 and 2, not {args.step_cost_error:g}.")
    scales_with = "" if args.scale else "--scale"
    refuse_what_does_nothing(
        _changed(args), find_policy(args.policy), migration=args.migration, scales_with=scales_with
    )
    scaling = None
    if args.scale:
        if args.max_instances < args.instances:
            args.max_instances = args.instances
        scaling = build(ScalingConfig, args)
    profile = load_profile(args.profile)
    caches = workload.hashed_tokens and profile.scheduler.kind == "vllm-1"
    return RunSetup(
        instances=args.instances,
        profile=profile,
        policy=build(PolicyConfig, args),
        migration=build(MigrationConfig, args),
        faults=tuple(parse_fault(text) for text in args.fault),
        seed=workload.seed,
        sample_interval_s=args.sample_s,
        unit_tokens=lcm(workload.hashed_tokens, profile.memory.block_tokens) if caches else 0,
        scaling=scaling,
        step_cost_error=args.step_cost_error,
        classes=None if args.classes is None else _classes(args.classes, workload),
    )


def _classes(path: str, workload: Workload) -> Classes:
    classes = read_classes(path)
    if classes.others is None and not any(request.tenant in classes.tenants for request in workload.requests):
        some = "+".join(list(classes.tenants)[:3])
        raise UsageError(
            f"No request of {workload.name} has a tenant that {path} lists, and there are no {OTHERS}: all would be "
            f"refused. The option tenants={some} of the workload spreads them, as does a column of a trace."
        )
    return classes


def _changed(args: argparse.Namespace) -> dict[str, str]:
    """Flags that say something else than their default does, by their fields."""
    knobs = [*fields(PolicyConfig), *fields(RolesConfig), *fields(ScalingConfig)]
    changed = [knob.name for knob in knobs if knob.metadata and getattr(args, knob.name) != knob.default]
    return {name: f"--{name.replace('_', '-')}" for name in changed}


def _cut_a_few(workload: Workload, setup: RunSetup) -> Workload:
    """A public trace has a few requests that are longer than the memory of a small device: those are cut, and counted.
    If it is more than a few, the run would say little about the trace; then the simulation names the first one."""
    most = setup.profile.max_sequence_tokens
    count = workload.longer_than(most)
    if not 0 < count <= MOST_CUT * len(workload.requests):
        return workload
    requests = "1 request is" if count == 1 else f"{count:,} requests are"
    print(
        f"{requests} longer than the {most:,} tokens that an instance of {setup.profile.name} holds, of "
        f"{len(workload.requests):,}: cut to that.",
        file=sys.stderr,
    )
    return workload.cut(most)


def _simulate(workload: Workload, setup: RunSetup, listener: Callable[[JournalEntry], None] | None) -> Outcome:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[virtual]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=len(workload.requests), virtual="")

        def show(finished: int, now_s: float) -> None:
            bar.update(task, completed=finished, virtual=f"{now_s:,.0f} s of virtual time")

        return simulate(sim_requests(workload, setup.unit_tokens), setup, show, listener)


def _write(args: argparse.Namespace, workload: Workload, setup: RunSetup, records: Records) -> None:
    facts: Mapping[str, Fact] = {
        "workload": workload.name,
        "policy": setup.policy.policy,
        "instances": setup.instances,
        "profile": setup.profile.name,
        "seed": workload.seed,
        "simulated": True,
    }
    summary = summarize(records, facts)
    write_records(args.out, records)
    write_summary(args.out / SUMMARY_JSON, summary)
    if args.plot:
        from llumnix.report.figures import draw  # matplotlib takes a second to load

        draw(records, args.out, title=f"{workload.name} on {setup.instances} × {setup.profile.name}, simulated")
    print_summary(summary)
