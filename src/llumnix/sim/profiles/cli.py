"""`llumnix profile`: measures a running server, or reads what one recorded, and writes a cost profile for the
simulator."""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import httpx
import msgspec
from rich.console import Console

from llumnix.api.bodies import InstancesAnswer
from llumnix.api.routes import PREFIX
from llumnix.client import concurrent_client, unreachable
from llumnix.errors import UsageError, refused_as
from llumnix.paths import a_path
from llumnix.record.read import read_run
from llumnix.remote import WANTS_KEY, add_server_flags, check_key, server_url
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.profiles.file import write_profile
from llumnix.sim.profiles.live import Plan, Unseen, fit, measure_server, worst_error
from llumnix.sim.profiles.recorded import fit_run

_OF_MEASURING = (
    *("prompts", "batches", "contexts", "output_tokens", "repeats", "blocks", "block_tokens", "state_blocks"),
    *("instances", "block_bytes", "gigabytes_per_s", "max_num_seqs", "max_num_batched_tokens"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `llumnix profile`."""
    parser.description = (
        "Measure an idle OpenAI server and fit a cost profile to its instances, as they run side by side; or fit one "
        "to what `llumnix serve --record` wrote down of a server in use."
    )
    plan = Plan()
    add_server_flags(parser)
    parser.add_argument(
        "--from", dest="recorded", type=a_path, metavar="DIR", help="a recorded run: nothing is measured, or asked for"
    )
    parser.add_argument("--out", required=True, type=a_path, help="TOML file to write")
    parser.add_argument("--name", help="name of the profile (default: that of the file)")
    parser.add_argument("--prompts", type=_numbers, default=plan.prompt_tokens, help="prompt lengths: 16,64,256,…")
    parser.add_argument("--batches", type=_numbers, default=plan.batches, help="batch sizes: 1,2,4,8")
    parser.add_argument("--contexts", type=_numbers, default=plan.contexts, help="prompt lengths in batches: 32,512")
    parser.add_argument("--output-tokens", type=int, default=plan.output_tokens, help="tokens a stream makes")
    parser.add_argument("--repeats", type=int, default=plan.repeats, help="prompts of each length; the quickest counts")
    parser.add_argument("--blocks", type=int, help="KV blocks of an instance (default: ask the server)")
    parser.add_argument("--block-tokens", type=int, help="tokens of a KV block (default: ask the server)")
    parser.add_argument(
        "--state-blocks",
        type=int,
        help="KV blocks that a request's state takes, of a hybrid model (default: as for --instances; else 0)",
    )
    parser.add_argument(
        "--instances",
        type=int,
        help="of the server, measured together (default: ask the server; 1 if --blocks and --block-tokens are given)",
    )
    parser.add_argument("--block-bytes", type=int, default=1 << 20, help="bytes of a KV block")
    parser.add_argument("--gigabytes-per-s", type=float, default=1.0, help="bandwidth between two instances")
    parser.add_argument("--max-num-seqs", type=int, default=256, help="as the server was started")
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048, help="as the server was started")


def _plan(args: argparse.Namespace) -> Plan:
    plan = Plan(
        prompt_tokens=args.prompts,
        batches=args.batches,
        contexts=args.contexts,
        output_tokens=args.output_tokens,
        repeats=args.repeats,
        instances=1 if args.instances is None else args.instances,
    )
    if plan.repeats < 1 or plan.output_tokens < 8 or plan.instances < 1:
        raise UsageError("--repeats and --instances must be at least 1 and --output-tokens at least 8.")
    if len(plan.prompt_tokens) < 2 or len(plan.batches) < 2:
        raise UsageError("A profile needs --prompts of two lengths and --batches of two sizes, or more.")
    return plan


def _name(args: argparse.Namespace) -> str:
    name: str = args.name or args.out.stem
    if not name.isprintable():
        raise UsageError(f"A profile cannot be named {name!r}: give a --name that can be printed.")
    return name


def run(args: argparse.Namespace) -> int:
    """Carries out `llumnix profile`. Returns 0; raises UsageError for bad input, ServerRefused for a server that does
    not answer."""
    if args.recorded is not None:
        return _run_recorded(args)
    plan, name = _plan(args), _name(args)
    _check_out(args.out)
    args.url = server_url(args.url)
    check_key(args.api_key)
    blocks, block_tokens, state_blocks = args.blocks, args.block_tokens, args.state_blocks or 0
    if blocks is None or block_tokens is None:
        told = asyncio.run(ask_server(args.url, args.api_key))
        blocks = told.total_blocks if blocks is None else blocks
        block_tokens = told.block_tokens if block_tokens is None else block_tokens
        state_blocks = told.state_blocks if args.state_blocks is None else state_blocks
        measured = told.instances if args.instances is None else args.instances
        plan = replace(plan, instances=measured, of=told.instances)
    unseen = Unseen(
        total_blocks=blocks,
        block_tokens=block_tokens,
        block_bytes=args.block_bytes,
        state_blocks=state_blocks,
        gigabytes_per_s=args.gigabytes_per_s,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
    )
    console = Console(stderr=True)
    console.print(f"Measuring {args.url} …", emoji=False, highlight=False, markup=False)
    prefill, decode = asyncio.run(measure_server(args.url, plan, args.api_key))
    origin = (
        f"Measured by `llumnix profile` on {date.today().isoformat()} over HTTP: prefill and decode from "
        f"{len(prefill)} prompt lengths and {len(decode)} batches, on {plan.instances} at once; bandwidth, copy "
        "rounds, start-up were not measured."
    )
    profile = fit(prefill, decode, unseen, name, origin)
    _write(profile, args.out)
    first, step = worst_error(profile, prefill, decode)
    how_well = f"worst error of the fit: first tokens {first:.0%}, decode steps {step:.0%}"
    console.print(f"Wrote {args.out}; {how_well}.", emoji=False, highlight=False, markup=False)
    return 0


def _run_recorded(args: argparse.Namespace) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for dest in _OF_MEASURING:
        if getattr(args, dest) != parser.get_default(dest):
            raise UsageError(f"--{dest.replace('_', '-')} is for measuring, and --from has it from the recorded run.")
    name = _name(args)
    _check_out(args.out)
    fitted = fit_run(read_run(args.recorded), name)
    _write(fitted.profile, args.out)
    console = Console(stderr=True)
    for note in fitted.notes:
        console.print(note, emoji=False, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Wrote {args.out}.", emoji=False, highlight=False, markup=False)
    return 0


def _check_out(out: Path) -> None:
    """Said before minutes of measuring."""
    if os.path.isdir(out) or not os.access(out.parent, os.W_OK):
        raise UsageError(f"Cannot write a file at --out {out}.")


def _write(profile: Profile, out: Path) -> None:
    with refused_as(f"Cannot write {out}"):
        write_profile(profile, out)


def _numbers(text: str) -> tuple[int, ...]:
    """`1,2,4` as whole numbers above 0, ascending."""
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,2,4") from None
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError("every number must be at least 1")
    return numbers


@dataclass(frozen=True, slots=True)
class Told:
    """What one of our own servers says of itself."""

    total_blocks: int
    block_tokens: int
    state_blocks: int
    instances: int


async def ask_server(url: str, api_key: str | None) -> Told:
    """From the list of instances; blocks are those of the first that has some."""
    try:
        async with concurrent_client(url, api_key, 10) as client:
            answer = (await client.get(f"{PREFIX}/instances")).raise_for_status()
        status = msgspec.json.decode(answer.content, type=InstancesAnswer)
        rows = [row for row in status.instances if row.total_blocks and row.block_tokens]
        return Told(rows[0].total_blocks, rows[0].block_tokens, rows[0].state_blocks, len(rows))
    except httpx.TransportError as error:
        raise unreachable(url, error) from error
    except (httpx.HTTPError, ValueError, IndexError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise UsageError(WANTS_KEY) from error
        raise UsageError(f"{url} does not tell of its KV cache: give --blocks and --block-tokens.") from None
