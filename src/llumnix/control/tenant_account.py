"""What one tenant has used of its limits."""

from __future__ import annotations

from math import ceil, floor, inf

import msgspec

from llumnix.control.token_bucket import TokenBucket
from llumnix.policy.classes import Declined, TenantTerms
from llumnix.policy.figures import figures

FIRST_GUESS_TOKENS = 256.0
"""Output of a tenant's first request, as far as anybody knows."""

_REMEMBERED = 100
"""Requests whose mean output is what the next one is expected to make."""


class Allowance(msgspec.Struct, frozen=True):
    """One of the limits, as OpenAI's `x-ratelimit-*` headers tell it."""

    what: str
    limit: float
    remaining: float
    reset_s: float


class TenantAccount:
    """Tokens are reserved when a request is taken (its prompt, and the output that is expected of it), and settled when
    it ends. Buckets are full at first: what an earlier front end counted is forgotten."""

    def __init__(self, terms: TenantTerms, at_s: float) -> None:
        self.running = 0
        self._mean_output = FIRST_GUESS_TOKENS
        self._ended = 0
        self._buckets: dict[str, TokenBucket] = {}
        self.change(terms, at_s)

    def change(self, terms: TenantTerms, at_s: float) -> None:
        """Other limits from now on; what was used stays used."""
        self.terms = terms
        self._concurrent = terms.concurrent_here
        limits = {"requests": terms.requests_per_minute, "tokens": terms.tokens_per_minute}
        self._limits = {what: limit for what, limit in limits.items() if limit is not None}
        before = self._buckets
        self._buckets = {what: _bucket(what, limit / terms.parts, at_s) for what, limit in self._limits.items()}
        for what, bucket in self._buckets.items():
            if what in before:
                bucket.take(before[what].capacity - before[what].level(at_s))

    @property
    def places(self) -> float:
        """Requests that may begin beside those that run."""
        return inf if self._concurrent is None else max(0, self._concurrent - self.running)

    @property
    def may_run(self) -> bool:
        limit = self._concurrent  # not by `places`: asked of every queue with each call
        return limit is None or self.running < limit

    @property
    def most_at_once(self) -> str:
        """In a sentence that says why one could not begin."""
        at_once = f"{self.terms.concurrent} request{'' if self.terms.concurrent == 1 else 's'} at once"
        return f"{at_once}{_here(self._concurrent, self.terms.parts)}"

    def expected_output(self, most_tokens: int) -> float:
        return min(self._mean_output, most_tokens)

    def declines(self, needed_tokens: float, at_s: float) -> Declined | None:
        """Why a request with so many tokens goes beyond a limit; None: it does not."""
        if self.terms.concurrent == 0:
            return Declined(429, "rate_limit_exceeded", f"The tenant {self.terms.name} may run no requests.")
        for what, amount in (("requests", 1.0), ("tokens", needed_tokens)):
            if what in self._buckets and (wait_s := self._wait_s(what, amount, at_s)) > 0:
                return self._declined(what, amount, wait_s, at_s)
        return None

    def declines_any(self, at_s: float) -> Declined | None:
        """Why no request, however small, is within the limits now. It says when one of the usual size would be."""
        return self.declines(0.0, at_s) and self.declines(self._usual_tokens, at_s)

    def reserve(self, needed_tokens: float) -> None:
        """For a request that was not declined."""
        self._take("requests", 1.0)
        self._take("tokens", needed_tokens)

    def give_back(self, needed_tokens: float) -> None:
        """It was never sent: as if it had not come."""
        self._take("requests", -1.0)
        self._take("tokens", -needed_tokens)

    def settle(self, expected_tokens: float, output_tokens: int) -> None:
        """It ended, and made so much."""
        self._take("tokens", output_tokens - expected_tokens)
        self._ended = min(_REMEMBERED, self._ended + 1)
        self._mean_output += (output_tokens - self._mean_output) / self._ended

    def allowances(self, at_s: float) -> tuple[Allowance, ...]:
        return tuple(
            Allowance(what, bucket.capacity, max(0.0, bucket.level(at_s)), bucket.full_in_s(at_s))
            for what, bucket in self._buckets.items()
        )

    @property
    def _usual_tokens(self) -> float:
        """Of a request of which no more is known: never more than a bucket may hold."""
        bucket = self._buckets.get("tokens")
        return 0.0 if bucket is None else min(self._mean_output, bucket.capacity)

    def _take(self, what: str, amount: float) -> None:
        if what in self._buckets:
            self._buckets[what].take(amount)

    def _wait_s(self, what: str, amount: float, at_s: float) -> float:
        """One within the tenant's limit that is more than this part of it holds goes when that is full, into debt."""
        bucket = self._buckets[what]
        if amount > max(self._limits[what], bucket.capacity):
            return inf
        return bucket.wait_s(min(amount, bucket.capacity), at_s)

    def _declined(self, what: str, amount: float, wait_s: float, at_s: float) -> Declined:
        bucket = self._buckets[what]
        here = _here(figures(self._limits[what] / self.terms.parts, 6), self.terms.parts)
        limit = f"The tenant {self.terms.name} may have {figures(self._limits[what])} {what} a minute{here}"
        if wait_s == inf:
            return Declined(429, "rate_limit_exceeded", f"{limit}, and this request needs {ceil(amount)}.")
        left = floor(max(0.0, bucket.level(at_s)))
        return Declined(429, "rate_limit_exceeded", f"{limit}; {left} of them are left, {ceil(amount)} needed.", wait_s)


def _here(part: object, parts: int) -> str:
    """So much of a limit is that of one front end."""
    return f" ({part} at each front end)" if parts > 1 else ""


def _bucket(what: str, per_minute: float, at_s: float) -> TokenBucket:
    """However rarely one may come, one request can; but with a limit of 0."""
    least = 1.0 if what == "requests" and per_minute else 0.0
    return TokenBucket(per_minute, at_s, max(per_minute, least))
