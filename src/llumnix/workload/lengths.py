"""How long prompts and outputs are, in tokens.

A length distribution is a function from uniform numbers in [0, 1) to lengths: `lengths(rng.random(n))`. Each
request costs one number whatever the distribution, so that a change of one never shifts another.

`parse_lengths` reads the names that a workload uses:

    512              every length is 512
    uniform64-192    whole numbers from 64 to 192, both included
    exp128           exponential with mean 128
    zipf128          the paper's generated lengths with mean 128 (256, 512 and 1024 exist, too)
    ShareGPT         like the ShareGPT (GPT-4) data set: prompts for prompts, answers for outputs
    BurstGPT         like the BurstGPT (GPT-4 conversation) data set, the same way

The last two are FITTED TO PUBLISHED PERCENTILES, NOT THE DATA SET: the inverse distribution function goes through
the P50, P80, P95 and P99 of the paper's table 1, and the curve between those is bent so that the mean is the
table's, too (within 1 %). Prompt and output of a request are independent, which they are not in the data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llumnix.errors import UsageError

Uniforms: TypeAlias = NDArray[np.float64]
Tokens: TypeAlias = NDArray[np.int64]
Lengths: TypeAlias = Callable[[Uniforms], Tokens]
Side: TypeAlias = Literal["prompt", "output"]

PAPER_CAP_TOKENS = 6144
"""The paper cuts every generated length here, and tops its data sets off there."""

ZIPF_EXPONENTS = {128: 2.0, 256: 1.5, 512: 1.15, 1024: 1.0005}
"""Exponent of the paper's generator by mean length; it has no rule for other means."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A data set as the paper's table 1 gives it, in tokens, with ends and a bend of ours (see above).

    Between two percentiles, length**bend is linear in the probability: 1 is a straight line, towards 0 a
    straight line on a logarithmic axis.
    """

    mean: float
    p50: float
    p80: float
    p95: float
    p99: float
    shortest: float
    longest: float
    bend: float

    def lengths(self, uniforms: Uniforms) -> Tokens:
        """Inverse distribution function at `uniforms`, rounded up to whole tokens."""
        knots = np.array([self.shortest, self.p50, self.p80, self.p95, self.p99, self.longest])
        bent = np.interp(uniforms, (0.0, 0.5, 0.8, 0.95, 0.99, 1.0), knots**self.bend)
        return np.ceil(np.round(bent ** (1 / self.bend), 6)).astype(np.int64)


DATASETS: dict[tuple[str, Side], Percentiles] = {
    ("sharegpt", "prompt"): Percentiles(306, 74, 348, 1484, 3388, shortest=4, longest=5100, bend=-0.2),
    ("sharegpt", "output"): Percentiles(500, 487, 781, 988, 1234, shortest=4, longest=1850, bend=0.9),
    ("burstgpt", "prompt"): Percentiles(830, 582, 1427, 2345, 3549, shortest=4, longest=5300, bend=0.42),
    ("burstgpt", "output"): Percentiles(271, 243, 434, 669, 964, shortest=4, longest=1450, bend=0.43),
}


def fixed(tokens: int) -> Lengths:
    """Every length is `tokens`."""
    return lambda uniforms: np.full(len(uniforms), tokens, dtype=np.int64)


def uniform(low: int, high: int) -> Lengths:
    """Whole numbers from `low` to `high`, both included, equally likely."""

    def lengths(uniforms: Uniforms) -> Tokens:
        steps: Tokens = np.floor(uniforms * (high - low + 1)).astype(np.int64)
        return low + steps

    return lengths


def exponential(mean: int) -> Lengths:
    """Exponential with mean `mean`, rounded up: at least 1."""
    # 1 - u is above 0; rounding to 1e-6 first keeps the last bit of log1p out of the result.
    return lambda uniforms: np.maximum(1, np.ceil(np.round(-mean * np.log1p(-uniforms), 6))).astype(np.int64)


def paper_zipf(mean: int) -> Lengths:
    """The paper's generated lengths (section 6.1; the S, M and L of its table 1).

    Ranks 1 … 2·mean−1 with probability ∝ rank^−α are drawn, and the whole sample is scaled so that its mean is
    `mean`: every run of n requests offers the same load, and lengths are multiples of one number, the shortest
    (38 or so for 128: there are no very short requests). Then rounded up and cut at 6144. Because of the
    scaling the lengths depend on how many are asked for.
    """
    ranks = np.arange(1, 2 * mean)
    cumulative = np.cumsum(ranks ** -ZIPF_EXPONENTS[mean])
    cumulative /= cumulative[-1]

    def lengths(uniforms: Uniforms) -> Tokens:
        if len(uniforms) == 0:
            return np.zeros(0, dtype=np.int64)
        drawn = np.searchsorted(cumulative, uniforms, side="right") + 1
        scaled: Tokens = np.ceil(drawn * (mean / drawn.mean())).astype(np.int64)
        return np.minimum(scaled, PAPER_CAP_TOKENS)

    return lengths


_FORM = re.compile(r"(?P<name>[a-z]*)(?P<first>[0-9]{0,8})(?:-(?P<second>[0-9]{1,8}))?")


def parse_lengths(text: str, side: Side) -> Lengths:
    """The distribution that `text` names (see the module). Raises UsageError for anything else."""
    match = _FORM.fullmatch(text.strip().lower())
    if match is None:
        raise _unknown(text, side)
    name, first, second = match["name"], match["first"], match["second"]
    if (name, side) in DATASETS and not first and not second:
        return DATASETS[name, side].lengths
    if name == "uniform" and first and second and 1 <= int(first) <= int(second):
        return uniform(int(first), int(second))
    if second or not first or int(first) < 1:
        raise _unknown(text, side)
    if name == "zipf":
        if int(first) not in ZIPF_EXPONENTS:
            raise UsageError(f"{side}={text}: the paper's zipf lengths exist for means of 128, 256, 512 and 1024.")
        return paper_zipf(int(first))
    if name in ("", "exp"):
        return exponential(int(first)) if name else fixed(int(first))
    raise _unknown(text, side)


def _unknown(text: str, side: Side) -> UsageError:
    return UsageError(
        f"{side}={text} is not a length: use a number of tokens, uniform64-192, exp128, zipf128, ShareGPT or BurstGPT."
    )
