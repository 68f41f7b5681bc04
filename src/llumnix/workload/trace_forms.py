"""The forms of trace that there are: how each is told apart, how its rows read, and what makes one implausible.

A file has one form, and it is certain: a row that fits two forms, or whose unit of time nobody can know, is refused.
Even then names may lie: milliseconds in a column of seconds, or blocks of another size, make a run that is off by a
thousand or by the size of a prefix cache. So what a whole file says is held against what its form can say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]

NS_PER_S = 1_000_000_000

MOONCAKE_BLOCK_TOKENS = 512
"""Prompt tokens behind one content id, where nothing else is said."""

BAILIAN_BLOCK_TOKENS = 16

MANY = 16
"""Rows of a file from which on it is judged as a whole: fewer may be of one moment, or even by chance."""

PLAUSIBLE_PER_S = (0.01, 1000.0)
"""Requests per second of a trace whose unit of time is known by its form alone."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a row of one kind of trace reads. `str(form)` is its name in a sentence."""

    name: str
    time: str
    prompt: str
    output: str
    nanoseconds: Callable[[Any], int]
    """What turns its time into nanoseconds; raises ValueError for what is no such time."""
    time_is: str
    """What its time has to be, in a sentence."""
    marks: tuple[str, ...] = ()
    """Further columns, without which it is not this form."""
    lacks: tuple[str, ...] = ()
    """Columns with which it is another."""
    hashes: str = ""
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    hashed_share: float = 0.0
    """So much of all prompts at least has a content id."""
    seconds_with_fractions: bool = False
    judged_by_rate: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.time, self.prompt, self.output, *self.marks)

    def fits(self, columns: Iterable[str]) -> bool:
        there = {*columns}
        return {*self.needed} <= there and not {*self.lacks} & there


def _clock_ns(text: Any) -> int:
    # fromisoformat drops the last of Azure's 7 digits after the point; whole microseconds are fine enough.
    moment = datetime.fromisoformat(text)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1) * 1000


def _seconds_ns(seconds: Any) -> int:
    return round(float(seconds) * NS_PER_S)


def _whole_ms_ns(milliseconds: Any) -> int:
    whole = int(milliseconds)
    if whole != float(milliseconds):
        raise ValueError
    return whole * 1_000_000


AZURE = Form("an Azure trace", "TIMESTAMP", "ContextTokens", "GeneratedTokens", _clock_ns, "a time")
MOONCAKE = Form(
    "a Mooncake trace",
    "timestamp",
    "input_length",
    "output_length",
    _whole_ms_ns,
    "a time: in a Mooncake trace it is a whole number of milliseconds",
    marks=("hash_ids",),
    lacks=("chat_id",),
    hashes="hash_ids",
    hashed_share=1.0,
    judged_by_rate=True,
)
BAILIAN = Form(
    "a Qwen-Bailian trace",
    "timestamp",
    "input_length",
    "output_length",
    _seconds_ns,
    "a time in seconds",
    marks=("chat_id",),
    hashes="hash_ids",
    block_tokens=BAILIAN_BLOCK_TOKENS,
    hashed_share=0.5,
    seconds_with_fractions=True,
    judged_by_rate=True,
)
OURS = Form(
    "a trace of our own form",
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    _seconds_ns,
    "a time",
    hashes="block_hashes",
)

CSV_FORMS = (AZURE, OURS)
JSON_FORMS = (MOONCAKE, BAILIAN, OURS)

_UNKNOWN_CSV = (
    "not a trace: the header must have TIMESTAMP,ContextTokens,GeneratedTokens (Azure) "
    "or arrival_s,prompt_tokens,output_tokens."
)
_UNKNOWN_JSON = (
    "not a trace: a row must have arrival_s, prompt_tokens and output_tokens, or timestamp, input_length, "
    "output_length and hash_ids (Mooncake, milliseconds) or chat_id (Qwen-Bailian, seconds)."
)
_NO_UNIT = (
    "timestamp may be in seconds or in milliseconds: a Mooncake trace (ms) has hash_ids, a Qwen-Bailian trace (s) has "
    "chat_id, and without either it must be called arrival_s, in seconds."
)


def form_of_csv(header: Sequence[str]) -> Form:
    """The form that the header tells. Raises ValueError with a sentence if there is none, or more than one."""
    return _only_one([form for form in CSV_FORMS if form.fits(header)], _UNKNOWN_CSV)


def form_of_json(row: Row) -> Form:
    """The same for the first row of a file of JSON lines."""
    columns = {*row}
    if {"timestamp", "input_length", "output_length"} <= columns and not columns & {"hash_ids", "chat_id", "arrival_s"}:
        raise ValueError(_NO_UNIT)
    return _only_one([form for form in JSON_FORMS if form.fits(columns)], _UNKNOWN_JSON)


def _only_one(found: Sequence[Form], none: str) -> Form:
    if not found:
        raise ValueError(none)
    if len(found) > 1:
        raise ValueError(f"this can be {' or '.join(map(str, found))}: leave out the columns of one.")
    return found[0]


@dataclass(slots=True)
class Judge:
    """What a whole file says, row by row, and at the end whether its form can say that."""

    form: Form
    rows: int = 0
    whole: int = 0
    """Rows whose time is a whole number of seconds."""
    block_tokens: int = 0
    """Of the rows with content ids; 0 if there was none."""
    ids: int = 0
    full_blocks: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def row(self, at_ns: int, prompt_tokens: int, ids: int, block_tokens: int) -> None:
        """Takes a row into account. Raises ValueError if it has more content ids than its prompt has blocks."""
        if ids > -(-prompt_tokens // block_tokens):
            raise ValueError(
                f"{ids} content ids for {prompt_tokens} tokens are too many for blocks of {block_tokens} tokens, as "
                f"{self.form} has them."
            )
        if ids and self.block_tokens not in (0, block_tokens):
            raise ValueError(f"blocks of {block_tokens} tokens and of {self.block_tokens} in one trace.")
        self.block_tokens = block_tokens if ids else self.block_tokens
        self.first_ns = min(at_ns, self.first_ns) if self.rows else at_ns
        self.last_ns = max(at_ns, self.last_ns) if self.rows else at_ns
        self.rows += 1
        self.whole += at_ns % NS_PER_S == 0
        self.ids += ids
        self.full_blocks += prompt_tokens // block_tokens

    def verdict(self) -> str:
        """Why this cannot be such a trace, as a sentence; empty if it can."""
        form, span_s = self.form, (self.last_ns - self.first_ns) / NS_PER_S
        if self.ids and self.ids < form.hashed_share * self.full_blocks:
            return (
                f"{self.ids} content ids are too few for blocks of {self.block_tokens} tokens, as {form} has them: "
                f"its prompts have {self.full_blocks}."
            )
        if self.rows < MANY:
            return ""
        if form.seconds_with_fractions and self.whole == self.rows:
            return (
                f"the {form.time} of {form} is in seconds with fractions, but here all are whole: if they are "
                "milliseconds, give them as arrival_s, in seconds."
            )
        least, most = PLAUSIBLE_PER_S
        if form.judged_by_rate and span_s and not least <= self.rows / span_s <= most:
            return (
                f"{self.rows} requests in {span_s:.6g} s are not plausible: {form.time} has another unit than in "
                f"{form}; give it as arrival_s, in seconds."
            )
        return ""
