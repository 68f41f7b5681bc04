"""The form of a recorded run: a folder with a set of files for each front end.

    about-f0.json             how the server was made, and what is not in the other files
    requests-f0-000.jsonl     a line for each sequence that ended: a trace as `--workload` takes it, and more
    moves-f0-000.csv          a row for each attempt to move one, as in migrations.csv; why it stayed as a kind only
    instances-f0-000.csv      a row for each instance and second, as in instances.csv; by one front end for all
    steps-f0-000.csv          what the steps of an instance cost, whenever it found that anew; likewise

Files of one kind go on in the next number after an hour, or when they are large. Times are seconds since the run began
(`About.began_at_s`), by the monotonic clock of the front ends' machine. There are no prompts, tokens, headers or users
in them: ids are hashes, and of prompts it is known which begin alike.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from llumnix.config import MigrationConfig, PolicyConfig
from llumnix.report.records import MigrationRecord, RequestRecord

VERSION = 1

ABOUT, REQUESTS, MOVES, INSTANCES, STEPS = "about", "requests", "moves", "instances", "steps"

FALLBACK_UNIT_TOKENS = 512
"""Of prompts, where instances do not say by how many tokens they tell beginnings apart."""

MOST_UNITS = 64
"""Of one prompt whose beginnings can be told from others'."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of an instance's local scheduler, by vLLM's names."""

    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_caching: bool
    priorities: bool


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Of one front end's files; all but the last four is the same in all of a run."""

    version: int = VERSION
    began_at_s: float = msgspec.field(name="began_at")
    """Since 1970."""
    llumnix: str
    engine: str
    """Name and version."""
    model: str
    front_ends: int
    policy: PolicyConfig
    migration: MigrationConfig
    limits: Limits
    block_tokens: int
    """Of a block of an instance's KV cache."""
    state_blocks: int
    """That each request holds beyond those of its tokens."""
    classes: bool
    """Requests were held back by the rules of `--classes`."""
    front_end: int
    since_s: float
    """When this front end began to write, since the run began. One that was restarted begins anew, and counts on:"""
    dropped: int = 0
    """Rows that came faster than they could be written, or when the disk was full."""
    removed: int = 0
    """Files that made room for newer ones (`--record-mb`)."""


class RecordedRequest(RequestRecord, frozen=True, kw_only=True, omit_defaults=True):
    """As its front end saw it: times are those at which tokens were handed on, not those at which a client read them.
    One that failed or was left early has the tokens that it made."""

    max_tokens: int | None = None
    """It might have made so many."""
    queue_s: float | None = None
    """Of `ttft_s`, until it was in a batch."""
    cached_tokens: int = 0
    """Of its prompt, that the prefix cache had."""
    block_hashes: tuple[int, ...] = ()
    """Of the whole units at the beginning of its prompt, at most the first 64: equal where prompts begin alike."""
    block_tokens: int = FALLBACK_UNIT_TOKENS
    """Tokens of such a unit."""


class RecordedMove(MigrationRecord, frozen=True, kw_only=True):
    tokens: int
    """Its prompt and what it had made, when it moved."""


class RecordedStep(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance says its steps cost (`StepCost`), from its last hundred or so, and what it had to do then."""

    at_s: float
    instance: str
    decoding: int
    """Requests that make a token in each step."""
    context_tokens: int
    """Length of those, together."""
    fixed_ms: float
    prefill_token_us: float
    request_us: float
    context_token_us: float

    @property
    def decode_step_ms(self) -> float:
        """Of a step with this load and no prompt: what the fit knows best, as its last steps were like that."""
        us = self.request_us * self.decoding + self.context_token_us * self.context_tokens
        return self.fixed_ms + us / 1e3


def about_file(folder: Path, front_end: int) -> Path:
    return folder / f"{ABOUT}-f{front_end}.json"


def part_file(folder: Path, kind: str, front_end: int, part: int) -> Path:
    suffix = "jsonl" if kind == REQUESTS else "csv"
    return folder / f"{kind}-f{front_end}-{part:03d}.{suffix}"


def parts_of(folder: Path, kind: str, front_end: int | None = None) -> list[Path]:
    """Its files of one kind, oldest first of each front end."""
    found = folder.glob(f"{kind}-f{'*' if front_end is None else front_end}-[0-9]*.*")
    return sorted(found, key=lambda file: (len(file.name), file.name))  # 999 is before 1000
