"""`llumnix whatif`: how a recorded run would have gone with other settings."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llumnix.errors import UsageError, refused_as
from llumnix.paths import a_path
from llumnix.record.read import RecordedRun, read_run
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.profiles.file import load_profile, profile_names
from llumnix.sim.profiles.recorded import fit_run
from llumnix.whatif.alternatives import Alternative, alternatives, as_it_was
from llumnix.whatif.metrics import RunNumbers, numbers_of
from llumnix.whatif.prediction import NOT, judge, predict
from llumnix.whatif.report import TriedAlternative, WhatIf, print_what_if, write_what_if
from llumnix.whatif.runs import Task, run_all, setup_of
from llumnix.whatif.stretch import Stretch, longest_stretch

MEASURED = "measured"
NOTHING_CREDIBLE = 3
"""Exit code."""

_MOST_REPEATS = 64

Counting = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""Gets how many simulations there will be, and gives what is to be called after each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `llumnix whatif`."""
    parser.description = (
        "Simulate a recorded run as it was, say how far that can be believed, and predict it with other settings."
    )
    parser.add_argument("folder", type=a_path, metavar="DIR", help="a recorded run, or a folder of them (the newest)")
    parser.add_argument(
        "--try",
        dest="tries",
        action="append",
        default=[],
        metavar="KNOB=VALUE",
        help="an alternative: instances=12, instances=4..10, policy=infaas++, migration=off, or any knob of "
        "`llumnix simulate`; several in one with commas between; can be repeated",
    )
    parser.add_argument(
        "--profile",
        default=MEASURED,
        help=f"what steps cost: {MEASURED} (of this run), a TOML file, or one of {', '.join(profile_names())}",
    )
    parser.add_argument("--requests", type=int, help="at most so many, the last ones (default: all)")
    parser.add_argument("--repeats", type=int, default=8, help="simulations of each, with arrivals jittered (8)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--out", type=a_path, metavar="FOLDER", help="for whatif.json and whatif.md")


def run(args: argparse.Namespace) -> int:
    """Carries out `llumnix whatif`. Returns 0, or 3 if nothing that was simulated is credible. Raises UsageError for
    bad input."""
    if args.out is not None:
        with refused_as(f"Cannot write to --out {args.out}"):
            args.out.mkdir(parents=True, exist_ok=True)
    found = what_if(args, _progress)
    if args.out is not None:
        with refused_as(f"Cannot write to --out {args.out}"):
            write_what_if(args.out, found)
    print_what_if(found, Console())
    return NOTHING_CREDIBLE if all(each.grade == NOT for each in found.known) else 0


def what_if(args: argparse.Namespace, told: Counting) -> WhatIf:
    """Raises UsageError for bad input."""
    if not 2 <= args.repeats <= _MOST_REPEATS:
        raise UsageError(f"--repeats must be between 2 and {_MOST_REPEATS}, not {args.repeats}.")
    if args.jobs < 1:
        raise UsageError("--jobs must be at least 1.")
    if args.requests is not None and args.requests < 1:
        raise UsageError("--requests must be at least 1.")
    recorded = read_run(args.folder)
    stretch = longest_stretch(recorded, args.requests)
    profile, notes = _profile(args.profile, recorded)
    base = as_it_was(recorded.about, len(stretch.instances))
    settings = [base, *alternatives(args.tries, base)]
    with told(len(settings) * args.repeats) as one_done:
        found = _what_if(recorded, stretch, profile, settings, args, one_done)
    found.about.extend(notes)
    return found


def _profile(name: str, recorded: RecordedRun) -> tuple[Profile, tuple[str, ...]]:
    if name != MEASURED:
        return load_profile(name), ()
    fitted = fit_run(recorded, "recorded")
    return fitted.profile, fitted.notes


def _what_if(
    recorded: RecordedRun,
    stretch: Stretch,
    profile: Profile,
    settings: Sequence[Alternative],
    args: argparse.Namespace,
    one_done: Callable[[], None],
) -> WhatIf:
    whole, most = stretch.workload(), profile.max_sequence_tokens
    workload = whole.cut(most)
    kept = frozenset(request.id for request in stretch.requests if not request.error)
    measured = numbers_of(stretch.requests, kept)
    tasks = [
        Task(workload=workload, setup=setup_of(each, profile, workload), seed=seed, kept=kept)
        for each in settings
        for seed in range(args.repeats)
    ]
    results = run_all(tasks, args.jobs, one_done)
    runs = [results[first : first + args.repeats] for first in range(0, len(results), args.repeats)]
    was: list[RunNumbers] = runs[0]
    credible = judge(measured, was, len(kept))
    hours = (stretch.end_s - stretch.begin_s) / 3600
    return WhatIf(
        folder=str(recorded.folder),
        about=[*_about(recorded, stretch), *_said_of_cut(whole.longer_than(most), most)],
        instance_hours=hours * settings[0].instances,
        repeats=args.repeats,
        known=credible,
        tried=[
            TriedAlternative(
                name=each.name,
                instance_hours=hours * each.instances,
                predictions=predict(credible, was, other),
            )
            for each, other in zip(settings[1:], runs[1:], strict=True)
        ],
    )


def _about(recorded: RecordedRun, stretch: Stretch) -> list[str]:
    lasted_s, whole_s = stretch.end_s - stretch.begin_s, recorded.end_s
    about = recorded.about
    served = f"{len(stretch.instances)} instances ({', '.join(stretch.instances)}), policy {about.policy.policy}"
    sentences = [f"{recorded.folder}: {len(stretch.requests):,} requests in {lasted_s / 60:.1f} min on {served}."]
    if stretch.left_out:
        sentences.append(f"The {stretch.left_out:,} before them, on the same instances, are left out.")
    if lasted_s < 0.95 * whole_s:
        last = "the end of " if stretch.left_out else ""
        sentences.append(
            f"It lasted {whole_s / 60:.1f} min; this is {last}the longest part in which the same instances served."
        )
    if stretch.failed or stretch.silent:
        sentences.append(f"{stretch.failed} of them failed; {stretch.silent} more made no token and are left out.")
    if about.dropped or about.removed:
        sentences.append(f"{about.dropped} rows were not written, and {about.removed} older files made room.")
    if about.classes:
        sentences.append("Its requests were held back by --classes; simulated, all go to an instance at once.")
    sentences.append("Simulated clients send what they sent, whenever answers come.")
    return sentences


def _said_of_cut(requests: int, most_tokens: int) -> list[str]:
    if not requests:
        return []
    return [f"{requests:,} of them are longer than the {most_tokens:,} tokens that an instance holds, and cut to that."]


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
