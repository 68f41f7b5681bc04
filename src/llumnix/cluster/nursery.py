"""The nursery: one process that imports the engine once and forks every instance and front end from there.

A fork takes milliseconds and shares the imported code's memory, where an import takes seconds and hundreds of
megabytes. The price is one rule: a process with threads must not fork, so this one never starts any: no ZeroMQ,
no asyncio, no tensor arithmetic. It knows nothing of what its children do; the launcher commands
(nursery_messages.py), the nursery forks, and reports who ended and how.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, assert_never, cast

import msgspec

from llumnix import linux, text_logs
from llumnix.cluster import forking, json_logs, logs
from llumnix.cluster.leftovers import Leftovers
from llumnix.cluster.nursery_messages import (
    Cleared,
    Example,
    Exited,
    Failed,
    Forked,
    ForkFrontEnd,
    ForkInstance,
    FromNursery,
    LoadEngine,
    Ready,
    SignalChild,
    StopListening,
    ToNursery,
    front_end_name,
    receive_from_launcher,
    send,
)
from llumnix.cluster.ports import listen_for_admin
from llumnix.cluster.traces import remove_gauges, remove_traces, temporary_folder
from llumnix.engine.port import Boot, FrontEndSpec, InstanceSpec
from llumnix.errors import LlumnixError, in_a_clause

_END_S = 3.0  # in which all descendants are gone once they were killed
_END_PAUSE_S = 0.01


def main(arguments: list[str]) -> int:
    """`python -m llumnix.cluster.nursery DESCRIPTOR PARENT`: started by the launcher only."""
    linux.die_with_parent(int(arguments[1]))
    linux.allow_many_files()  # on a node of Ray's nobody has
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # threads of a Ray actor, which may be our parent, block most
    channel = socket.socket(fileno=int(arguments[0]))
    first = receive_from_launcher(channel)
    if not isinstance(first, LoadEngine):
        return 1
    try:
        nursery = Nursery(channel, first)
    except LlumnixError as error:
        send(channel, Failed(why=str(error)))
        return 2
    except Exception as error:  # noqa: BLE001 outermost: whatever the engine raises becomes a sentence and a log
        traceback.print_exc()
        send(channel, Failed(why=f"The engine cannot start: {type(error).__name__}: {error}"))
        return 2
    nursery.run()
    return 0


class Nursery:
    def __init__(self, channel: socket.socket, prepare: LoadEngine) -> None:
        """Imports and prepares the engine and opens the sockets. Raises UsageError."""
        self._channel = channel
        self._common = prepare
        self._pids: dict[int, str] = {}
        self._leftovers = Leftovers()
        self._book = prepare.book
        if self._book.front_ends > 1:
            # Read by prometheus_client when it is imported: several processes then count into one set of files.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = self._book.run_dir
        if prepare.cluster.log_format == "json":
            json_logs.begin_with_vllm("nursery", os.environ, prepare.engine_flags)
        self._engine = cast("Boot", importlib.import_module(prepare.engine))
        self._setup: Any = self._engine.prepare(list(prepare.engine_flags), prepare.model)
        text_logs.begin_beside_engine()
        self._socket: socket.socket | None = None
        self._admin_socket: socket.socket | None = None
        if not prepare.alone:
            self._socket = self._engine.listen(self._setup)
            self._admin_socket = listen_for_admin(self._setup.host, prepare.cluster.admin_port)
        forking.settle_memory()
        given = self._setup.example
        example = None if given is None else Example(path=given[0], body=given[1])
        send(channel, Ready(host=self._setup.host, port=self._bound_port(), example=example))

    def _bound_port(self) -> int:
        port: int = self._setup.port
        if self._socket is not None and self._socket.family != socket.AF_UNIX:
            port = self._socket.getsockname()[1]
        return port

    def run(self) -> None:
        """Obeys the launcher until it is gone; then nothing of the children is left."""
        linux.adopt_orphans()
        self._own = forking.children()  # the engine's, from its import
        child_ended, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._inherited = (child_ended, wakeup)
        signal.signal(signal.SIGCHLD, _do_nothing)  # without a handler nothing is written to the wake-up pipe
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(child_ended, select.POLLIN)
        while True:
            look_s = self._leftovers.next_look_s
            patience_ms = None if look_s is None else max(0.0, look_s - time.monotonic()) * 1000 + 1
            ready = {descriptor for descriptor, _ in poll.poll(patience_ms)}
            if child_ended in ready:
                os.read(child_ended, 4096)
            if child_ended in ready or (look_s is not None and time.monotonic() >= look_s):
                self._report_exits()
            if self._channel.fileno() in ready:
                message = receive_from_launcher(self._channel)
                if message is None:
                    break
                self._obey(message)
        self._end_everybody()

    def _obey(self, message: ToNursery) -> None:
        match message:
            case ForkInstance():
                self._fork(message.id, lambda: self._run_instance(message))
            case ForkFrontEnd():
                self._fork(front_end_name(message.index), lambda: self._run_front_end(message.index))
            case SignalChild():
                for pid, child in self._pids.items():
                    if child == message.child:
                        os.kill(pid, message.signal)
            case StopListening():
                self._close_sockets()
            case LoadEngine():
                raise AssertionError("it was prepared before")
            case _:
                assert_never(message)

    def _report_exits(self) -> None:
        """And sees to what those who ended left running. Their news is not kept waiting for that."""
        ended = self._reap()
        now = time.monotonic()
        steps = self._leftovers.look([child for child, _, _ in ended], self._orphans(), now)
        for child, pid, status in ended:
            remove_gauges(self._book.run_dir, pid)
            remains = child not in steps.cleared
            if not remains:
                remove_traces(self._book.run_dir, child)
            self._tell(Exited(child=child, how=linux.describe_exit(status), remains=remains))
        for pid, number in steps.signals:
            forking.note(f"{signal.Signals(number).name} to process {pid}, which a child that ended left running")
            with contextlib.suppress(PermissionError):  # it took on another user; then it is told of as stuck
                os.kill(pid, number)
        for child, stuck in steps.cleared.items():
            if child not in {name for name, _, _ in ended}:
                remove_traces(self._book.run_dir, child)
                self._tell(Cleared(child=child, stuck=stuck))

    def _reap(self) -> list[tuple[str, int, int]]:
        """Children that ended, with pids and exit statuses. Orphans just go."""
        ended: list[tuple[str, int, int]] = []
        with contextlib.suppress(ChildProcessError):  # there are none
            while (found := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if found[0] in self._pids:
                    ended.append((self._pids.pop(found[0]), *found))
        return ended

    def _orphans(self) -> set[int]:
        return forking.children() - self._pids.keys() - self._own

    def _end_everybody(self) -> None:
        """Whoever is below this process, by force."""
        deadline_s = time.monotonic() + _END_S
        while time.monotonic() < deadline_s and (left := self._pids.keys() | self._orphans()):
            for pid in left:
                with contextlib.suppress(PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_END_PAUSE_S)
            self._reap()

    def _tell(self, news: FromNursery) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the launcher is gone: seen when it is read
            send(self._channel, news)

    # children

    def _fork(self, child: str, run: Callable[[], None]) -> None:
        forking.warn_about_threads()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, or too little memory: no reason for the others to end
            self._tell(Exited(child=child, how=f"it cannot be forked: {in_a_clause(error)}"))
            return
        if pid == 0:
            self._become_child(child, parent, run)
        self._pids[pid] = child
        self._tell(Forked(child=child, pid=pid))

    def _become_child(self, child: str, parent: int, run: Callable[[], None]) -> NoReturn:
        """Runs `run` in the forked process, which knows nothing of its siblings and ends with its parent."""
        code = 1
        try:
            linux.die_with_parent(parent)
            linux.adopt_orphans()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._channel.close()
            for descriptor in self._inherited:
                os.close(descriptor)
            if self._common.log_dir is not None:
                logs.write_to(logs.log_file(Path(self._common.log_dir), child))
            forking.name_process(child)
            run()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001 outermost: the launcher reads the reason in the log
            traceback.print_exc()
        finally:
            forking.flush()  # a full disk must not bring the child to where the nursery goes on
            os._exit(code)  # exit handlers that were registered before the fork are the nursery's

    def _run_instance(self, fork: ForkInstance) -> None:
        self._close_sockets()
        forking.keep_temporary_files_in(temporary_folder(self._book.run_dir, fork.id))
        common = self._common
        spec = InstanceSpec(
            **msgspec.structs.asdict(fork),
            device_slot=0 if common.alone else fork.slot,
            node=common.node,
            book=self._book,
            policy=common.policy,
            migration=common.migration,
            cluster=common.cluster,
            secret=common.secret,
        )
        self._engine.run_instance(self._setup, spec)

    def _run_front_end(self, index: int) -> None:
        assert self._socket is not None, "forked after the end of listening"
        common = self._common
        spec = FrontEndSpec(
            index=index,
            book=self._book,
            policy=common.policy,
            migration=common.migration,
            cluster=common.cluster,
            admin_socket=self._admin_socket,
            classes=common.classes,
            secret=common.secret,
        )
        self._engine.run_front_end(self._setup, spec, self._socket)

    def _close_sockets(self) -> None:
        for sock in filter(None, (self._socket, self._admin_socket)):
            sock.close()
        self._socket = self._admin_socket = None


def _do_nothing(_signal: int, _frame: object) -> None:
    pass


if __name__ in ("__main__", "__mp_main__"):  # the latter in workers that instances spawn, which import the engine, too
    forking.collect_later()
if __name__ == "__main__":
    code = main(sys.argv[1:])
    forking.flush()
    os._exit(code)  # nobody waits for the engine's modules to be taken down
