"""Recorded runs for other tools: as a Mooncake or an Azure trace, which `--workload` takes, too.

Sequences that made no token are in none of them: there is nothing to ask for again.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import msgspec

from llumnix.errors import UsageError, refused_as
from llumnix.record.form import RecordedRequest
from llumnix.record.read import RecordedRun
from llumnix.workload.trace_forms import MOONCAKE_BLOCK_TOKENS


def export(run: RecordedRun, form: str, path: Path) -> int:
    """Writes them to `path`; `form` is one of `FORMS`. Returns how many. Raises UsageError if it cannot."""
    requests = [request for request in run.requests if request.output_tokens]
    if not requests:
        raise UsageError(f"No request in {run.folder} made a token.")
    with refused_as(f"Cannot write {path}"):
        FORMS[form](run, requests, path)
    return len(requests)


def _mooncake(_: RecordedRun, requests: Sequence[RecordedRequest], path: Path) -> None:
    """Times in whole milliseconds, and an id for each 512 tokens of a prompt, the last of them included."""
    begin_s = requests[0].arrival_s
    ids = _MooncakeIds()
    with path.open("wb") as file:
        for request in requests:
            row = {
                "timestamp": round(1e3 * (request.arrival_s - begin_s)),
                "input_length": request.prompt_tokens,
                "output_length": request.output_tokens,
                "hash_ids": list(ids.of(request)),
            }
            file.write(msgspec.json.encode(row) + b"\n")


class _MooncakeIds:
    """Small numbers, the same where prompts begin alike, as far as was recorded: what was not is unlike all others."""

    def __init__(self) -> None:
        self._next = count()
        self._known: dict[int, int] = {}

    def of(self, request: RecordedRequest) -> Iterator[int]:
        """A recorded name is that of all of a prompt up to there, so the last one of 512 tokens names these."""
        units, rest = divmod(MOONCAKE_BLOCK_TOKENS, request.block_tokens)
        for number in range(-(-request.prompt_tokens // MOONCAKE_BLOCK_TOKENS)):
            last = (number + 1) * units
            if rest or last > len(request.block_hashes):
                yield next(self._next)
            else:
                name = request.block_hashes[last - 1]
                if name not in self._known:
                    self._known[name] = next(self._next)
                yield self._known[name]


def _azure(run: RecordedRun, requests: Sequence[RecordedRequest], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
        for request in requests:
            at = datetime.fromtimestamp(run.about.began_at_s + request.arrival_s, UTC)
            writer.writerow((f"{at:%Y-%m-%d %H:%M:%S.%f}", request.prompt_tokens, request.output_tokens))


FORMS: dict[str, Callable[[RecordedRun, Sequence[RecordedRequest], Path], None]] = {
    "mooncake": _mooncake,
    "azure": _azure,
}
