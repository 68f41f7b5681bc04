"""`python -m llumnix.whatif.asked PARENT FILE RUN`: what a server was asked (`front_end/admin/what_if.py`).

It ends with that process, and gives way to everybody: the machine is there to serve. Once it has begun, FILE says how
far it is (`WhatIfRun`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from llumnix import linux
from llumnix.api.what_if import BEGUN, MOST_ALTERNATIVES, WhatIfRun
from llumnix.errors import UsageError
from llumnix.record.read import read_about
from llumnix.whatif.alternatives import alternatives, as_it_was
from llumnix.whatif.cli import add_arguments, what_if
from llumnix.whole_file import write_whole

MOST_BYTES = 4 << 30
"""Of memory. What needs more is for another machine."""


class _Report:
    def __init__(self, path: Path, run: WhatIfRun) -> None:
        self._path = path
        self._run = run

    def say(self, **facts: Any) -> None:
        self._run = msgspec.structs.replace(self._run, **facts)
        write_whole(self._path, msgspec.json.encode(self._run))

    @contextmanager
    def progress(self, _total: int) -> Iterator[Callable[[], None]]:
        yield lambda: self.say(done=self._run.done + 1)


def main(words: list[str]) -> int:
    parent, file, asked = words
    linux.die_with_parent(int(parent))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever a server of many threads had of it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run = msgspec.json.decode(asked, type=WhatIfRun)
    report = _Report(Path(file), run)
    try:
        args = _arguments(run)
        report.say(total=_settings(args) * args.repeats)
    except UsageError as error:
        print(error, end="")
        return 2
    print(end=BEGUN, flush=True)
    _step_back()
    return _carry_out(args, report)


def _carry_out(args: argparse.Namespace, report: _Report) -> int:
    try:
        report.say(found=msgspec.to_builtins(what_if(args, report.progress)))
    except UsageError as error:
        report.say(problem=str(error))
        return 2
    except MemoryError:
        report.say(problem=f"It takes more than {MOST_BYTES >> 30} GiB of memory: the command can be run elsewhere.")
        return 1
    return 0


def _settings(args: argparse.Namespace) -> int:
    """How many there are, as it was included. Nothing large is read for that."""
    return 1 + len(alternatives(args.tries, as_it_was(read_about(args.folder), 1), MOST_ALTERNATIVES))


def _arguments(run: WhatIfRun) -> argparse.Namespace:
    """As the command has them that it says of itself."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*shlex.split(run.command)[2:], "--jobs=1"])


def _step_back() -> None:
    """Behind all that serves: for the processor, and for memory when there is none left."""
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    with contextlib.suppress(OSError):  # not every container has it
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
