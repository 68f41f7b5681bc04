"""The admin routes that ask `llumnix whatif` about what was recorded so far.

It is a process of its own (`whatif/asked.py`), one at a time for all front ends: it holds a lock in the private folder
of the server, and says in a file beside it how far it is. So every front end can tell of it and end it; the one that
was asked sees to its end, and takes it along. The lock is its, too, until it has written down how that came.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from time import time
from typing import TextIO

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from llumnix.api.what_if import BEGUN, MOST_ALTERNATIVES, WhatIfAnswer, WhatIfRun
from llumnix.engine.vllm.front_end.admin.answers import Bad, Guard, answer, body_of, shown
from llumnix.engine.vllm.front_end.client_ids import is_text
from llumnix.engine.vllm.front_end.loud_tasks import LoudTasks
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.linux import describe_exit
from llumnix.whole_file import write_whole

LONGEST_S = 300.0
MOST_REQUESTS = 5000
_LONGEST_TRY = 200  # characters
_BEGINS_IN_S = 30.0
_ENDS_IN_S = 5.0
_UNAVAILABLE = "service_unavailable_error"
_CANCELLED = "It was cancelled."
_TOO_LONG = (
    f"It took longer than {LONGEST_S:.0f} s: fewer alternatives take less, and the command can be run elsewhere."
)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def add_what_if(router: APIRouter, guard: Guard, board: Switchboard) -> None:
    runs = WhatIfRuns(board)

    @router.get("/whatif")
    async def look(request: Request) -> Response:
        async def act() -> Response:
            return answer(runs.now())

        return await guard.answer(request, act)

    @router.post("/whatif")
    async def begin(request: Request) -> Response:
        async def act() -> Response:
            return answer(await runs.begin((await body_of(request, {"tries": list}))["tries"]), 202)

        return await guard.answer(request, act)

    @router.delete("/whatif")
    async def cancel(request: Request) -> Response:
        async def act() -> Response:
            return answer(await runs.cancel())

        return await guard.answer(request, act)


class WhatIfRuns:
    """Raises Bad, also where nothing is recorded."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._owners = LoudTasks()

    def now(self) -> WhatIfAnswer:
        lock, file = self._places()
        running = _is_held(lock)
        run = _read(file)
        if run is not None and not _has_ended(run):
            return WhatIfAnswer(running=running, run=run if running else _ended(run, "It ended before it was done."))
        return WhatIfAnswer(running=running and run is None, run=run)

    async def begin(self, tries: list[object]) -> WhatIfAnswer:
        lock, file = self._places()
        asked = self._asked(tries)
        with ExitStack() as until_started:
            held = until_started.enter_context(lock.open("r+"))
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Bad(409, "Another one is under way; it can be cancelled.", "conflict_error") from None
            held.truncate(0)  # nobody takes the number of the last one for this one's
            try:
                process = _start(asked, file, held.fileno())
            except OSError as error:
                raise Bad(503, f"It cannot be started: {error.strerror}.", _UNAVAILABLE) from error
            held.write(str(process.pid))
            held.flush()
            until_started.pop_all()
        said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._owners.spawn(_attend(process, held, file, said))
        if (first := await said) == BEGUN:
            return self.now()
        if first:
            raise Bad(400, first)
        raise Bad(503, "It could not begin; the log of this front end may say why.", _UNAVAILABLE)

    async def cancel(self) -> WhatIfAnswer:
        """Does nothing if none runs."""
        lock, file = self._places()
        if await _terminated(lock):
            _conclude(file, _CANCELLED)
        return self.now()

    def _asked(self, tries: list[object]) -> WhatIfRun:
        if len(tries) > MOST_ALTERNATIVES:
            raise Bad(400, f"{len(tries)} alternatives are too many: at most {MOST_ALTERNATIVES} at a time.")
        texts = [text for text in tries if isinstance(text, str) and is_text(text) and len(text) <= _LONGEST_TRY]
        if len(texts) < len(tries):
            raise Bad(400, f"Alternatives are short texts such as 'instances=6', and not {shown(tries)}.")
        recorder = self._board.log.recorder
        assert recorder is not None
        if not recorder.folder.exists():
            raise Bad(
                409, "Nothing has been written down yet; ask again when some requests have ended.", "conflict_error"
            )
        folder = str(recorder.folder)
        words = [folder, *(f"--try={text}" for text in texts), f"--requests={MOST_REQUESTS}"]
        command = shlex.join(["llumnix", "whatif", *words])
        return WhatIfRun(tries=texts, folder=folder, command=command, began_at_s=time())

    def _places(self) -> tuple[Path, Path]:
        """The lock, which is there then, and the file."""
        if self._board.log.recorder is None:
            raise Bad(404, "The server was started without --record.", "not_found_error")
        file = Path(self._board.spec.book.run_dir) / "what-if"
        lock = file.with_name("what-if-lock")
        lock.touch()
        return lock, file


def _start(asked: WhatIfRun, file: Path, lock: int) -> subprocess.Popen[bytes]:
    """From the thread of the event loop, which lives as long as this process: the kernel ends it with its thread."""
    words = [str(os.getpid()), str(file), msgspec.json.encode(asked).decode()]
    return subprocess.Popen(
        [sys.executable, "-m", "llumnix.whatif.asked", *words],
        env=os.environ | _ONE_THREAD,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=(lock,),
    )


async def _attend(process: subprocess.Popen[bytes], held: TextIO, file: Path, said: asyncio.Future[str]) -> None:
    """Until it has ended, which it does at the latest when this is cancelled. `said`: its first word, empty if none."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    first, why = "", "It ended with the front end that was asked."
    try:
        if await _readable(output, _BEGINS_IN_S):
            first = os.read(output, 4096).decode()
            said.set_result(first)
        if first == BEGUN:  # once nobody is left to write to it, it has ended
            why = "" if await _readable(output, LONGEST_S) else _TOO_LONG
    finally:
        process.kill()
        code = process.wait()
        process.stdout.close()
        if not said.done():
            said.set_result("")
        if first == BEGUN:
            _conclude(file, why or _ending(code))
        held.close()


def _ending(code: int) -> str:
    if code == -signal.SIGTERM:
        return _CANCELLED
    return f"It ended: {describe_exit(-code if code < 0 else code << 8)}."


def _conclude(file: Path, why: str) -> None:
    """What it has said of its end itself stays."""
    run = _read(file)
    if run is not None and not _has_ended(run):
        write_whole(file, msgspec.json.encode(_ended(run, why)))


def _has_ended(run: WhatIfRun) -> bool:
    return run.found is not None or run.problem is not None


def _ended(run: WhatIfRun, why: str) -> WhatIfRun:
    return msgspec.structs.replace(run, problem=why)


async def _terminated(lock: Path) -> bool:
    """Whether one ran, which has ended now."""
    descriptor = _holder(lock)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        return await _readable(descriptor, _ENDS_IN_S)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)


def _holder(lock: Path) -> int | None:
    """A descriptor of the process that holds it: whoever else may have its number by now does not."""
    try:
        descriptor = os.pidfd_open(int(lock.read_text()))
    except (ValueError, ProcessLookupError):
        return None
    if _is_held(lock):
        return descriptor
    os.close(descriptor)
    return None


def _is_held(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _read(file: Path) -> WhatIfRun | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=WhatIfRun)
    except FileNotFoundError:
        return None


async def _readable(descriptor: int, timeout_s: float) -> bool:
    """Of a pipe also when it has ended, and so of a process."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True
