"""The launcher's own children, nursery and scheduler, and the end of everything below it.

Children get a process group of their own, so that Ctrl-C reaches the launcher only. They stay in the launcher's
session: Linux shares the cores among sessions first (`sched_autogroup_enabled`), and on a full machine it was seen to
let processes of one session wait seconds for those of another (docs/measure/lab-log.md, 2026-11-23).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import msgspec
import psutil

from llumnix import linux
from llumnix.cluster.logs import open_log
from llumnix.cluster.nursery_messages import FromNursery, ToNursery, channel, receive_from_nursery, send
from llumnix.cluster.scheduler_process import SchedulerSpec

REST_S = 5.0
"""In which whatever still runs below the launcher at the end is gone, once it was killed."""


class NurseryProcess:
    def __init__(
        self,
        environment: Mapping[str, str],
        log: Path | None,
        module: str = "llumnix.cluster.nursery",
        patience_s: float = 0.0,
    ) -> None:
        """`module` is the nursery, or what speaks like one; it gets `patience_s` to end by itself."""
        self._patience_s = patience_s
        self._over = False
        self._deaf = ""
        self._orders: SimpleQueue[ToNursery | None] = SimpleQueue()
        self.channel, theirs = channel()
        command = [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid())]
        with _output(log) as output, theirs:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        threading.Thread(target=self._pass_on, name="orders to the nursery", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToNursery) -> None:
        """Returns at once. Nothing happens when it is gone: that shows at the next `receive`."""
        self._orders.put(message)

    def _pass_on(self) -> None:
        """In a thread: the channel holds a few hundred messages each way, and two that both wait for the other to read
        wait for ever."""
        try:
            while (order := self._orders.get()) is not None:
                send(self.channel, order)
        except (BrokenPipeError, ConnectionResetError):  # it is gone
            pass
        except OSError as error:
            if not self._over:
                self._deaf = f"it cannot be told what to do: {error}"
                self._process.kill()

    def receive(self) -> FromNursery | None:
        return receive_from_nursery(self.channel)

    def end(self) -> str:
        """Kills it, and the kernel with it all that it forked. How it ended, in words."""
        self._over = True
        self._orders.put(None)
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._patience_s)
        self._process.kill()
        self._process.wait()
        return self._deaf or _how(self._process)


class SchedulerChild:
    def __init__(self, spec: SchedulerSpec, environment: Mapping[str, str], log: Path | None) -> None:
        command = [sys.executable, "-m", "llumnix.cluster.scheduler_process", str(os.getpid())]
        with (
            _output(log) as output,
            open(os.memfd_create("scheduler"), "w+b") as told,
        ):  # a full pipe would have to wait
            told.write(msgspec.json.encode(spec))
            told.seek(0)
            self._process = subprocess.Popen(
                command, env=dict(environment), stdin=told, stdout=output, stderr=output, process_group=0
            )
        self.exit_descriptor = os.pidfd_open(self._process.pid)
        """Readable once the process ended."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self, kill: bool) -> None:
        if kill:
            self._process.kill()
        else:
            self._process.terminate()

    def end(self) -> str:
        """Kills it if it still runs. How it ended, in words."""
        self._process.kill()
        self._process.wait()
        os.close(self.exit_descriptor)
        return _how(self._process)


def _how(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return linux.describe_exit(-code if code < 0 else code << 8)


def _output(log: Path | None) -> contextlib.AbstractContextManager[IO[bytes] | None]:
    """Where a child writes: a log file, or (None) our own stdout and stderr."""
    return contextlib.nullcontext() if log is None else open(open_log(log), "ab")


def reap_orphans(known: set[int]) -> None:
    """Takes the exit status of adopted descendants that ended; `known` children are left to their owners."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in known:
            return
        os.waitpid(ended.si_pid, 0)


def end_all_descendants() -> None:
    """Kills whatever still runs below this process and waits until the kernel is done with it, at most `REST_S`."""
    deadline_s = time.monotonic() + REST_S
    while time.monotonic() < deadline_s:
        children = psutil.Process().children(recursive=True)
        if not children:
            return
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)
        reap_orphans(known=set())
        time.sleep(0.01)
