"""An engine module (engine/port.py) without an engine: real processes that report, answer HTTP and die on demand.

Its behaviour is asked for by flags, as one asks vLLM: `--fail-start`, `--fail-first N`, `--slow-until FILE`,
`--busy-while FILE`: as long as the file is there, every instance reports that it is full; and `--workers`: each
instance starts some processes that do not end with it. At SIGUSR2 an instance goes on as one whose engine hangs with a
request that it does not read: it repeats its last report.
"""

from __future__ import annotations

import argparse
import http.server
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from msgspec.structs import replace

from llumnix.control.scheduler_events import SetDraining
from llumnix.engine.port import END_NOW, FrontEndSpec, InstanceSpec
from llumnix.engine.shared_memory import note_shared_memory
from llumnix.errors import UsageError
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.wire.base import InstanceInfo
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import InstanceGone, Report
from llumnix.wire.to_front_end import FRONT_END_MAIL, ToFrontEnd
from llumnix.wire.to_instance import INSTANCE_MAIL, ToInstance
from llumnix.wire.to_launcher import FrontEndLives

log = logging.getLogger("llumnix.fake")


@dataclass(frozen=True)
class Setup:
    host: str
    port: int
    uds: str | None
    fail_start: bool
    fail_first: int
    slow_until: Path | None
    busy_while: Path | None
    workers: bool
    example: None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message}.")


def prepare(argv: list[str], model: str) -> Setup:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--uds")
    parser.add_argument("--fail-start", action="store_true")
    parser.add_argument("--fail-first", type=int, default=0)
    parser.add_argument("--slow-until", type=Path)
    parser.add_argument("--busy-while", type=Path)
    parser.add_argument("--workers", action="store_true")
    return Setup(**vars(parser.parse_args(argv)))


def listen(setup: Setup) -> socket.socket:
    if setup.uds is not None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(setup.uds)
        sock.listen()
        return sock
    try:
        return socket.create_server((setup.host, setup.port))
    except OSError as error:
        raise UsageError(f"Port {setup.port} cannot be opened: {error.strerror}.") from error


def run_instance(setup: Setup, spec: InstanceSpec) -> None:
    log.info("%s begins", spec.id)
    if setup.fail_start or spec.index < setup.fail_first:
        raise ValueError("no room for the KV cache")
    Path(tempfile.gettempdir(), "rendezvous").touch()  # as engines do, and never remove
    hold_shared_memory(shared_memory_name(os.environ["LLUMNIX_TEST_SERVER"], os.getpid()))
    if setup.workers:
        start_stubborn_workers()
    ended = threading.Event()
    draining = threading.Event()
    asked_to_end = threading.Event()
    hangs = threading.Event()
    signal.signal(END_NOW, lambda *_: ended.set())
    signal.signal(signal.SIGTERM, lambda *_: (draining.set(), asked_to_end.set()))  # type: ignore[func-returns-value]
    signal.signal(signal.SIGUSR2, lambda *_: hangs.set())

    def on_message(message: ToInstance) -> None:
        if isinstance(message, SetDraining):
            draining.set()

    mailbox = Mailbox(spec.book.instance(spec.id), INSTANCE_MAIL, on_message, spec.book.keys)
    mailbox.start()
    info = InstanceInfo(
        id=spec.id,
        index=spec.index,
        slot=spec.slot,
        pid=os.getpid(),
        node=spec.node,
        control=mailbox.address,
        data="none",
    )
    report = _report(info, 0)
    mailbox.post(spec.book.launcher, report)
    seq = 0
    while not ended.wait(spec.cluster.heartbeat_interval_s):
        seq += 1
        busy = setup.busy_while is not None and setup.busy_while.exists()
        if hangs.is_set():
            standing_s = report.snapshot.standing_s + spec.cluster.heartbeat_interval_s
            report = replace(report, snapshot=replace(report.snapshot, unread=1, standing_s=standing_s))
        else:
            report = _report(info, seq, draining.is_set(), busy)
            report = replace(report, snapshot=replace(report.snapshot, asked_to_end=asked_to_end.is_set()))
        for address in (spec.book.scheduler, *spec.book.all_front_ends):
            mailbox.post(address, report)
    mailbox.close()
    print("ended when it was told to")


def shared_memory_name(server: str, pid: int) -> str:
    """A pid alone may have been another's, minutes or runs ago."""
    return f"llumnix-test-{server}-{pid}"


def hold_shared_memory(name: str) -> None:
    """As workers of one instance do to talk to each other."""
    with Path("/dev/shm", name).open("w+b") as file:
        file.truncate(mmap.PAGESIZE)
        _held.append(mmap.mmap(file.fileno(), mmap.PAGESIZE))
    note_shared_memory()


_held: list[mmap.mmap] = []


def start_stubborn_workers() -> None:
    """They notice neither the end of their parent nor SIGTERM: a child that is forked, one that is in a session of its
    own, that one's child, and one that knows nothing of this process."""
    for apart in (False, True):
        if os.fork() == 0:
            _be_stubborn(apart)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code], env={}, start_new_session=True)


def _be_stubborn(apart: bool) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if apart:
        os.setsid()
        os.fork()
    time.sleep(600)
    os._exit(0)


def _report(info: InstanceInfo, seq: int, draining: bool = False, busy: bool = False) -> Report:
    """No request is there, but a busy one says that something holds its memory."""
    snapshot = InstanceSnapshot(
        id=info.id,
        at=time.monotonic(),
        seq=seq,
        total_blocks=100,
        free_blocks=3 if busy else 100,
        state="draining" if draining else "running",  # type: ignore[arg-type]
    )
    return Report(info=info, snapshot=snapshot)


def run_front_end(setup: Setup, spec: FrontEndSpec, sock: socket.socket) -> None:
    """`/health`, `/instances` (pids), `/nodes`, `/slow` (an answer that waits for a file), `/slow-ones`, `/pid`."""
    serving: dict[str, int] = {}
    nodes: dict[str, str] = {}
    slow_ones: list[str] = []

    gone: set[str] = set()

    def on_message(message: ToFrontEnd) -> None:
        if isinstance(message, Report) and message.info.id not in gone:
            serving[message.info.id] = message.info.pid
            nodes[message.info.id] = message.info.node
        elif isinstance(message, InstanceGone):
            gone.add(message.instance)
            serving.pop(message.instance, None)
            nodes.pop(message.instance, None)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/slow":
                slow_ones.append(self.path)
                while setup.slow_until is not None and not setup.slow_until.exists():
                    time.sleep(0.02)
            status = 200 if serving or self.path != "/health" else 503
            answers: dict[str, object] = {"/pid": os.getpid(), "/nodes": nodes, "/slow-ones": len(slow_ones)}
            body = str(answers.get(self.path, serving)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    mailbox = Mailbox(spec.book.front_end(spec.index), FRONT_END_MAIL, on_message, spec.book.keys)
    mailbox.start()
    told_s = 0.0

    def tell_that_it_lives() -> None:
        nonlocal told_s
        if time.monotonic() >= told_s + 1.0:
            told_s = time.monotonic()
            mailbox.post(spec.book.launcher, FrontEndLives(front_end=spec.index, pid=os.getpid()))

    server = http.server.ThreadingHTTPServer((setup.host, setup.port), Handler, bind_and_activate=False)
    server.daemon_threads = False  # closing waits for the requests that run
    server.socket.close()
    server.socket = sock
    sock.setblocking(False)  # several wake for one connection, and only one of them gets it
    server.service_actions = tell_that_it_lives  # type: ignore[method-assign]
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    mailbox.close()
