"""What comes between two tokens besides the engine's own step, beside `vllm serve`.

    python benchmarks/token_gap.py
    python benchmarks/token_gap.py --rounds 10 --also "--report-interval-s 0.2"

One paced engine each (`_paced/`), whose steps take the same everywhere, and the same streams in turns: vLLM's own,
Llumnix, Llumnix with a report after each step, and with what `--also` says. Alone on the machine. Ratios of the mean
gap, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from contextlib import ExitStack

from frame.arguments import at_least_one
from frame.models import paced_engine_flags
from frame.server import ServerProcess, llumnix_server, vllm_server
from frame.stream import COMPLETIONS, exactly, open_session, served_model, stream
from frame.verdict import at_most, conclude, median
from frame.vitals import cpu_s

STREAMS, TOKENS = 6, 400
STEP_MS, TOKEN_MS = 20.0, 0.2
GOAL = 1.02
VLLM, OURS, EACH_STEP = "vllm serve", "llumnix", "llumnix, a report after each step"


async def mean_gap_s(server: ServerProcess) -> float:
    async with open_session(server.url) as session:
        model = await served_model(session)
        bodies = [exactly(model, [number + 5] * 40, TOKENS) for number in range(STREAMS)]
        outputs = await asyncio.gather(*(stream(session, COMPLETIONS, body) for body in bodies))
    assert all(output.complete for output in outputs), [output.failure for output in outputs]
    begin = max(output.times_s[0] for output in outputs)
    end = min(output.times_s[-1] for output in outputs)
    return statistics.fmean(gap for output in outputs for gap in output.gaps_s(begin, end))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least_one, default=6)
    parser.add_argument("--also", help="Flags of one more server.")
    values = parser.parse_args()
    own = {OURS: (), EACH_STEP: ("--quiet-report-interval-s", "0")}
    if values.also:
        own[f"llumnix {values.also}"] = tuple(values.also.split())
    gaps_s: dict[str, list[float]] = {name: [] for name in (VLLM, *own)}
    cpu_ms: dict[str, list[float]] = {name: [] for name in gaps_s}
    with paced_engine_flags(STEP_MS, TOKEN_MS, max_model_len=2048, kv_mib=12) as engine, ExitStack() as running:
        engine = [*engine, "--max-num-seqs", "64", "--max-num-batched-tokens", "512"]
        servers = {VLLM: running.enter_context(vllm_server(engine, "--api-server-count", "1"))}
        for name, flags in own.items():
            servers[name] = running.enter_context(llumnix_server([*engine, *flags], instances=1))
        names = list(servers)
        for turn in range(-1, values.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                before = cpu_s(servers[name].processes())
                gap_s = asyncio.run(mean_gap_s(servers[name]))
                if turn >= 0:  # the first is to get warm
                    gaps_s[name].append(gap_s)
                    cpu_ms[name].append(1e3 * (cpu_s(servers[name].processes()) - before) / TOKENS)
    figures = []
    for name in names:
        figures += [median(f"{name}: between two tokens", [1e3 * gap for gap in gaps_s[name]], unit="ms")]
        figures += [median(f"{name}: processor time per step", cpu_ms[name], unit="ms")]
    for name in own:
        ratios = [ours / theirs for ours, theirs in zip(gaps_s[name], gaps_s[VLLM], strict=True)]
        figures.append(median(f"{name} / {VLLM}", ratios, at_most(GOAL) if name == OURS else None, "×"))
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
