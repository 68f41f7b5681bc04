"""A workload: the requests of one run, made from one line of text.

    poisson:rate=32,prompt=zipf128,output=zipf128,requests=10000,high=0.1,seed=3
    S-S?rate=36&seed=1                  a trace of the paper by its name
    azure-conv?rate=20&limit=5000       a trace that comes with the package
    my-trace.csv?rate=4&scale=0.1       a file (Azure CSV, Mooncake JSON lines, or our own form)

A name, then options after `:` or `?`, separated by `,` or `&`:

| option | meaning | default |
|---|---|---|
| `rate` | mean requests per second; a trace is stretched or squeezed to it | 1; the paper's lowest; a trace as it is |
| `requests` or `limit` | how many; of a trace, the first so many | 1000; the paper's 10,000; all |
| `cv` | coefficient of variation of the gaps (`gamma`; makes a paper trace's arrivals gamma) | 1 |
| `prompt`, `output` | lengths, see `lengths.py` | zipf128 |
| `high` | share of requests that are of high priority | 0; as the trace has it |
| `tenants` | whose: `alice*3+bob/batch`: three of four alice's, else bob's, class batch | nobody's; as in the trace |
| `scale` | factor on all lengths, for small models | 1 |
| `cap` | longest prompt and longest output in tokens | none |
| `total` | longest prompt and output together; the output gives way first | none |
| `seed` | of all random numbers | 0 |

Same text, same requests, on every machine: each purpose (arrivals, prompt lengths, output lengths, priorities)
draws from a generator of its own, spawned from the seed, so that adding a draw to one shifts no other. NumPy
guarantees the bits of PCG64 and of SeedSequence.spawn for good; it lets a release change how `Generator` turns
those bits into exponential and gamma numbers, and the last bit of a logarithm may differ between math libraries.
The first would be caught by the digests in our tests, the second is rounded away.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import msgspec
import numpy as np

from llumnix.errors import UsageError
from llumnix.paths import expanded
from llumnix.types import HIGH, NORMAL
from llumnix.workload.arrivals import PROCESSES
from llumnix.workload.lengths import parse_lengths
from llumnix.workload.trace import Trace, WorkloadRequest, load_trace, request_id

__all__ = ["PAPER_TRACES", "TRACES", "Workload", "WorkloadRequest", "load_workload"]

PAPER_TRACES: dict[str, dict[str, str]] = {
    "S-S": {"prompt": "zipf128", "output": "zipf128", "rate": "32"},
    "M-M": {"prompt": "zipf256", "output": "zipf256", "rate": "7.4"},
    "L-L": {"prompt": "zipf512", "output": "zipf512", "rate": "2.6"},
    "S-L": {"prompt": "zipf128", "output": "zipf512", "rate": "4.1"},
    "L-S": {"prompt": "zipf512", "output": "zipf128", "rate": "10"},
    "ShareGPT": {"prompt": "ShareGPT", "output": "ShareGPT", "rate": "7", "total": "12800"},
    "BurstGPT": {"prompt": "BurstGPT", "output": "BurstGPT", "rate": "7.5", "cap": "6144"},
}
"""The seven traces of the paper's figure 11 and the lowest rate of each; 10,000 requests, Poisson arrivals."""

TRACES = {
    "azure-code": "azure-code.csv.xz",
    "azure-conv": "azure-conv.csv.xz",
    "mooncake-conv": "mooncake-conv.jsonl.xz",
}
"""Public traces that come with the package (`data/README.md` has sources and licences)."""

MOST_REQUESTS = 10_000_000
"""Of a generated workload: what still fits the memory of a laptop."""

_LENGTH_OPTIONS = {"scale", "cap", "total"}
_TRACE_OPTIONS = _LENGTH_OPTIONS | {"rate", "requests", "high", "tenants", "seed"}
_GENERATOR_OPTIONS = _TRACE_OPTIONS | {"cv", "prompt", "output"}


_NAME = r"[A-Za-z0-9_.@-]{1,64}"
_TENANT = re.compile(rf"(?P<tenant>{_NAME})(/(?P<cls>{_NAME}))?(\*(?P<weight>[0-9]{{1,6}}(\.[0-9]{{1,6}})?))?")


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests by time of arrival, and the text that they were made from."""

    name: str
    requests: tuple[WorkloadRequest, ...]
    seed: int = 0
    silent: int = 0
    """Rows of its file that are left out, as they made no token."""

    @property
    def left_out(self) -> str:
        """What of its file is not in it, as a sentence; empty if nothing is."""
        rows = "1 row is" if self.silent == 1 else f"{self.silent:,} rows are"
        return f"{rows} left out of the workload: no token was made there." if self.silent else ""

    @property
    def hashed_tokens(self) -> int:
        """Prompt tokens behind one content id; 0 if no prompt has any."""
        return next((request.block_tokens for request in self.requests if request.block_hashes), 0)

    @property
    def duration_s(self) -> float:
        """Time from the first to the last arrival."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s if self.requests else 0.0

    def longer_than(self, total: int) -> int:
        """So many would be cut."""
        return sum(request.prompt_tokens + request.output_tokens > total for request in self.requests)

    def cut(self, total: int) -> Workload:
        """The same, but no prompt and output are longer than `total` tokens together; the prompt gives way first.
        Requests that are not longer are the same objects."""
        return replace(self, requests=tuple(_cut(request, total) for request in self.requests))


def load_workload(
    text: str, *, rate: float | None = None, requests: int | None = None, seed: int | None = None
) -> Workload:
    """The workload that `text` describes (see the module); the keywords override its options.

    Raises UsageError, one sentence, for a name, option, number or file that makes no sense.
    """
    name, given = _split(text)
    silent = 0
    overrides = {"rate": rate, "requests": requests, "seed": seed}
    given |= {key: str(value) for key, value in overrides.items() if value is not None}
    if name in PROCESSES:
        options = _Options(name, given, _GENERATOR_OPTIONS)
        made: Sequence[WorkloadRequest] = _generate(name, options)
    elif name in PAPER_TRACES:
        options = _Options(name, {"requests": "10000"} | PAPER_TRACES[name] | given, _GENERATOR_OPTIONS)
        made = _generate("gamma" if "cv" in given else "poisson", options)
    else:
        options = _Options(name, given, _TRACE_OPTIONS)
        trace = _trace(name)
        made, silent = _of_trace(trace.requests, options), trace.silent
    made = _with_tenants(_with_high(made, options), options)
    fitted = tuple(_fit(request, options) for request in made)
    return Workload(name=text, requests=fitted, seed=options.seed, silent=silent)


class _Options:
    """The options of one workload, checked: unknown names and impossible numbers raise UsageError."""

    def __init__(self, name: str, given: Mapping[str, str], allowed: set[str]) -> None:
        self.name, self.given = name, given
        unknown = sorted(set(given) - allowed)
        if unknown:
            raise UsageError(f"{name} has no option {unknown[0]}; it has {', '.join(sorted(allowed))}.")
        self.seed = self.whole("seed", 0, least=0, most=10**12)

    def number(self, key: str, default: float, *, least: float, most: float) -> float:
        text = self.given.get(key)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise UsageError(f"{self.name}: {key} must be a number from {least:g} to {most:g}, not {text}.")
        return value

    def whole(self, key: str, default: int, *, least: int = 1, most: int = 2**31) -> int:
        text = self.given.get(key)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise UsageError(f"{self.name}: {key} must be a whole number from {least} to {most}, not {text}.")
        return int(text)

    def rate(self) -> float:
        return self.number("rate", 1.0, least=1e-4, most=1e6)

    def generators(self) -> tuple[np.random.Generator, ...]:
        """For arrivals, prompt lengths, output lengths, priorities, tenants. Append new purposes at the end."""
        children = np.random.SeedSequence(self.seed).spawn(5)
        return tuple(np.random.Generator(np.random.PCG64(child)) for child in children)


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Name and options. A `:` starts options only after a generator's name, for a path may have one."""
    name, _, tail = text.strip().partition("?")
    head, colon, rest = name.partition(":")
    if colon and (head in PROCESSES or head in PAPER_TRACES or head in TRACES):
        name, tail = head, rest + ("&" + tail if tail else "")
    options: dict[str, str] = {}
    for item in filter(None, re.split("[,&]", tail)):
        key, equals, value = item.partition("=")
        key = {"limit": "requests"}.get(key.strip(), key.strip())
        if not equals or not value.strip():
            raise UsageError(f"{name}: {item!r} is not an option; options look like rate=4.")
        if key in options:
            raise UsageError(f"{name}: {key} is given twice.")
        options[key] = value.strip()
    return name, options


def _generate(process: str, options: _Options) -> list[WorkloadRequest]:
    count = options.whole("requests", 1000, most=MOST_REQUESTS)
    arrivals, prompts, outputs, *_ = options.generators()
    times = PROCESSES[process](arrivals, count, options.rate(), options.number("cv", 1.0, least=0.01, most=100))
    prompt_tokens = parse_lengths(options.given.get("prompt", "zipf128"), "prompt")(prompts.random(count))
    output_tokens = parse_lengths(options.given.get("output", "zipf128"), "output")(outputs.random(count))
    columns = zip(times.tolist(), prompt_tokens.tolist(), output_tokens.tolist(), strict=True)
    return [WorkloadRequest(request_id(i), *column) for i, column in enumerate(columns)]


def _trace(name: str) -> Trace:
    if name in TRACES:
        with resources.as_file(resources.files(__package__) / "data" / TRACES[name]) as path:
            return load_trace(path)
    if {".csv", ".jsonl"} & set(Path(name).suffixes) and "\0" not in name:
        return load_trace(expanded(name))
    known = ", ".join((*PROCESSES, *PAPER_TRACES, *TRACES))
    raise UsageError(f"{name or 'An empty text'} is not a workload: use one of {known}, or a .csv or .jsonl file.")


def _of_trace(requests: Sequence[WorkloadRequest], options: _Options) -> Sequence[WorkloadRequest]:
    requests = requests[: options.whole("requests", len(requests))]
    if "rate" not in options.given:
        return requests
    span_s = requests[-1].arrival_s
    wanted_s = (len(requests) - 1) / options.rate()
    factor = wanted_s / span_s if span_s else 0.0
    # Whole nanoseconds, as everywhere in a workload.
    return [msgspec.structs.replace(r, arrival_s=round(r.arrival_s * factor, 9)) for r in requests]


def _with_high(requests: Sequence[WorkloadRequest], options: _Options) -> Sequence[WorkloadRequest]:
    """Makes a random share `high` of the requests high and the others normal, if that option is given."""
    if "high" not in options.given:
        return requests
    share = options.number("high", 0.0, least=0, most=1)
    drawn = options.generators()[3].random(len(requests)) < share
    return [
        msgspec.structs.replace(request, priority=HIGH if high else NORMAL)
        for request, high in zip(requests, drawn.tolist(), strict=True)
    ]


def _with_tenants(requests: Sequence[WorkloadRequest], options: _Options) -> Sequence[WorkloadRequest]:
    """Gives each request a tenant, and a class if one is named, by the option `tenants`."""
    if "tenants" not in options.given:
        return requests
    found = [_TENANT.fullmatch(text) for text in options.given["tenants"].split("+")]
    weights = [float(match["weight"] or 1) for match in found if match]
    if None in found or not sum(weights) > 0:
        raise UsageError(
            f"{options.name}: tenants must be names such as alice+bob, each with a class or a weight if need be "
            f"(alice/batch*3), not {options.given['tenants']}."
        )
    names = [(match["tenant"], match["cls"] or "") for match in found if match]
    ends = np.cumsum(weights) / sum(weights)
    drawn = np.searchsorted(ends, options.generators()[4].random(len(requests)), side="right")
    return [
        msgspec.structs.replace(request, tenant=names[which][0], cls=names[which][1])
        for request, which in zip(requests, np.minimum(drawn, len(names) - 1).tolist(), strict=True)
    ]


def _cut(request: WorkloadRequest, total: int) -> WorkloadRequest:
    if request.prompt_tokens + request.output_tokens <= total:
        return request
    output = min(request.output_tokens, total - 1)
    return msgspec.structs.replace(request, prompt_tokens=total - output, output_tokens=output)


def _fit(request: WorkloadRequest, options: _Options) -> WorkloadRequest:
    """Scales and cuts the lengths; content ids stay only where the prompt stays as it was."""
    if not _LENGTH_OPTIONS & options.given.keys():
        return request
    scale = options.number("scale", 1.0, least=1e-6, most=1e6)
    cap, total = options.whole("cap", 2**31), options.whole("total", 2**31, least=2)
    prompt = min(max(1, math.ceil(request.prompt_tokens * scale)), cap, total - 1)
    output = min(max(1, math.ceil(request.output_tokens * scale)), cap, total - prompt)
    # A shorter prompt keeps the front of its content; a scaled one is another prompt altogether.
    hashes = request.block_hashes if scale == 1.0 else ()
    return msgspec.structs.replace(request, prompt_tokens=prompt, output_tokens=output, block_hashes=hashes)
