"""What a stream notices when somebody first asks its engine for log probabilities: of ours, and of `vllm serve`.

    python benchmarks/first_logprobs.py [--family pipeline]

PyTorch's cache of compiled code is empty, as on a machine that was just set up. A stream runs, and a request for log
probabilities comes beside it: how long the stream stands still. Exit code 1 if ours does for more than some steps.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

from families.table import FAMILIES, family_engine_flags
from frame.server import ServerProcess, llumnix_server, vllm_server
from frame.stream import COMPLETIONS, Streaming, open_session, stream
from frame.verdict import Figure, at_most, conclude

STEPS = 20
"""That a stream may stand still. A prompt beside it takes some, and other programs do."""
_BODY = {"model": "tiny", "prompt": "Once", "temperature": 0, "ignore_eos": True}


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """For servers that are started meanwhile."""
    with (
        tempfile.TemporaryDirectory(prefix="compiled-") as folder,
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder),
    ):
        yield


async def stands_still(url: str) -> tuple[float, float]:
    """Seconds: for how long, and between two tokens before."""
    async with open_session(url, timeout_s=600) as session:
        beside = Streaming(session, _BODY | {"max_tokens": 4000}, name="beside")
        await beside.pieces(100)
        asked_s = time.monotonic()
        output = await stream(session, COMPLETIONS, _BODY | {"max_tokens": 5, "logprobs": 3})
        await beside.more_pieces(5)
        await beside.cancel()
    if output.failure:
        raise SystemExit(f"the request for log probabilities failed: {output.failure}")
    longest_s = max(beside.output.gaps_s(asked_s, math.inf))
    return longest_s, statistics.median(beside.output.gaps_s(0.0, asked_s))


def measured(server: AbstractContextManager[ServerProcess]) -> tuple[float, float]:
    with nothing_compiled(), server as running:
        return asyncio.run(stands_still(running.url))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, default="llama", help="Of families/table.py. Default: llama.")
    name = parser.parse_args().family
    with family_engine_flags(name) as engine_flags:
        return conclude(*_compare(engine_flags))


def _compare(engine_flags: Sequence[str]) -> Iterator[Figure]:
    ours_s, step_s = measured(llumnix_server(engine_flags, instances=1))
    theirs_s, _ = measured(vllm_server(engine_flags))
    yield Figure("a stream stands still, llumnix", ours_s * 1e3, unit="ms")
    yield Figure("in normal steps", ours_s / step_s, at_most(STEPS))
    yield Figure("a stream stands still, vllm serve", theirs_s * 1e3, unit="ms")


if __name__ == "__main__":
    sys.exit(main())
