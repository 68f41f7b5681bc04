"""The launcher: the main process of `llumnix serve`, hands and ears of the supervisor.

Light on purpose: it imports neither vLLM nor torch, so it starts at once, costs little memory and can hardly die.
Everything that happens (a message from the nursery or in its mailbox, a signal, an exit, a deadline) becomes an
event for the supervisor on one thread, and the supervisor's commands are carried out here.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import assert_never

from msgspec.structs import replace

from llumnix import linux
from llumnix.cluster import socket_file, supervision
from llumnix.cluster.awake import LOOK_S, AwakeClock
from llumnix.cluster.children import NurseryProcess, SchedulerChild, end_all_descendants, reap_orphans
from llumnix.cluster.console import Voice
from llumnix.cluster.environment import child_environment, parallel_starts, ray_environment
from llumnix.cluster.greeting import greeting
from llumnix.cluster.health import HealthWatch, address_of
from llumnix.cluster.logs import HOUSEKEEPING_INTERVAL_S, LogFolder
from llumnix.cluster.nursery_messages import (
    Cleared,
    Exited,
    Failed,
    Forked,
    ForkFrontEnd,
    ForkInstance,
    HasRoom,
    Leaving,
    Ready,
    SignalChild,
    StopListening,
    Waiting,
    is_front_end,
)
from llumnix.cluster.orders_to_children import address_book, load_engine, scheduler_spec
from llumnix.cluster.run_dir import private_run_dir
from llumnix.cluster.service_manager import ServiceManager
from llumnix.cluster.supervision import Audience, Finish
from llumnix.cluster.supervisor import Supervisor
from llumnix.control.scheduler_events import DeclareLost, SetRole, StartInstances, StopInstance
from llumnix.engine.port import END_NOW
from llumnix.flags import ServeArguments
from llumnix.types import InstanceState
from llumnix.wire.addresses import AddressBook
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import Report
from llumnix.wire.outbox import Mail
from llumnix.wire.to_launcher import LAUNCHER_MAIL, FrontEndLives, SchedulerLives, ToLauncher

_NURSERIES = {"local": ("llumnix.cluster.nursery", 0.0), "ray": ("llumnix.cluster.ray.launch", 10.0)}
"""What starts the instances, and how many seconds it gets to leave nothing on other machines."""


def _terminating() -> list[signal.Signals]:
    """What ends the server. Under `nohup` the end of the terminal does not."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


def serve(arguments: ServeArguments, model: str, most: int | None) -> int:
    """Serves `model` until a signal; returns the exit code. Call `preflight.check` first, which says `most`: instances
    that there are GPUs for."""
    linux.allow_many_files()
    with private_run_dir() as run_dir, ExitStack() as stack:
        book = address_book(arguments, run_dir, stack)
        return Launcher(arguments, model, book, most).run()


class Launcher:
    def __init__(self, arguments: ServeArguments, model: str, book: AddressBook, most: int | None = None) -> None:
        self._arguments = arguments
        self._model = model
        self._clock = AwakeClock()  # nobody is late who stood still together with us
        self._manager = ServiceManager(os.environ)
        self._voice = Voice(arguments.cluster.log_format, self._manager)
        self._environment = child_environment(arguments, os.environ)
        self._book = book
        self._logs = LogFolder(arguments.cluster, Path(book.run_dir))
        self._node = socket.gethostname()
        self._supervisor = Supervisor(
            arguments.cluster,
            self._node,
            arguments.front_ends,
            parallel_starts(arguments.cluster),
            most,
            arguments.policy.roles,
        )
        self._events: queue.SimpleQueue[supervision.SupervisorEvent] = queue.SimpleQueue()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._mailbox = Mailbox(self._book.launcher, LAUNCHER_MAIL, self._on_message, self._book.keys)
        self._scheduler: SchedulerChild | None = None
        self._before_the_end = ExitStack()
        self._loaded = False
        self._finish: Finish | None = None

    def run(self) -> int:
        linux.adopt_orphans()
        handlers = {number: signal.signal(number, self._on_signal) for number in _terminating()}
        self._mailbox.start()
        arguments, cluster = self._arguments, self._arguments.cluster
        module, patience_s = _NURSERIES[cluster.launcher]
        environment = ray_environment(cluster, self._environment) | self._environment
        self._nursery = NurseryProcess(environment, self._logs.file("nursery"), module, patience_s)
        try:
            self._voice.say(f"loading the engine and {arguments.model or 'a tiny random model'}")
            log_dir = None if self._logs.path is None else str(self._logs.path)
            self._nursery.send(load_engine(arguments, self._model, self._node, self._book, log_dir))
            finish = self._loop()
        finally:
            self._clean_up()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(self._wakeup)  # nobody posts any more
        if finish.exit_code == 0:
            self._voice.say("stopped")
        else:
            self._voice.say(finish.sentence + self._logs.where_to_look, warning=True)
        self._voice.close()
        return finish.exit_code

    # what happens

    def _loop(self) -> Finish:
        now = self._clock.now()
        loading_deadline_s = now + self._arguments.cluster.start_timeout_s
        housekeeping_s = now + HOUSEKEEPING_INTERVAL_S
        while self._finish is None:
            due_s = self._supervisor.next_wake_s if self._loaded else loading_deadline_s
            all_due_s = (now + LOOK_S, now + self._manager.rest_s, due_s)
            self._wait_until(min(each for each in all_due_s if each is not None))
            now = self._clock.now()
            self._manager.beat(time.monotonic())
            if now >= housekeeping_s:
                housekeeping_s = now + HOUSEKEEPING_INTERVAL_S
                self._keep_house()
            if self._loaded:
                self._tell_supervisor(supervision.TimePassed())
            elif now >= loading_deadline_s:
                limit_s = self._arguments.cluster.start_timeout_s
                self._finish = self._finish or Finish(2, f"The engine did not load within {limit_s:g} s.")
        return self._finish

    def _wait_until(self, due_s: float) -> None:
        """Waits for anything to happen, at most until then, and handles it."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        poll.register(self._nursery.channel, select.POLLIN)
        if self._scheduler is not None:
            poll.register(self._scheduler.exit_descriptor, select.POLLIN)
        # Rounded up: a wait that ends a fraction of a millisecond early would spin.
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, due_s - self._clock.now()) * 1000 + 1)}
        if self._wakeup in ready:
            os.eventfd_read(self._wakeup)
            self._take_events()
        if self._nursery.channel.fileno() in ready:
            self._on_nursery()
        if self._scheduler is not None and self._scheduler.exit_descriptor in ready:
            how, self._scheduler = self._scheduler.end(), None
            self._tell_supervisor(supervision.SchedulerExited(self._logs.end_of("scheduler", how)))

    def _take_events(self) -> None:
        """Those that are there now: what comes meanwhile has its turn after signals, exits and deadlines."""
        for _ in range(self._events.qsize()):
            self._tell_supervisor(self._events.get())

    def _post(self, event: supervision.SupervisorEvent) -> None:
        """From other threads and from signal handlers."""
        self._events.put(event)
        os.eventfd_write(self._wakeup, 1)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._manager.stopping()
        self._post(supervision.Terminate())

    def _on_message(self, message: ToLauncher) -> None:
        """On the mailbox's thread."""
        match message:
            case Report():
                info, snapshot = message.info, message.snapshot
                drains = snapshot.state is InstanceState.DRAINING
                said = supervision.InstanceServes(info.id, info.control, snapshot.goes, drains)
                if not self._supervisor.knows(said):  # else a heartbeat like thousands before it
                    self._post(said)
            case StartInstances() | StopInstance() | SetRole() | DeclareLost() | SchedulerLives() | FrontEndLives():
                self._post(message)
            case _:
                assert_never(message)

    def _on_nursery(self) -> None:
        match self._nursery.receive():
            case Ready() as ready:
                self._on_loaded(ready)
            case Failed() as failed:
                self._finish = Finish(1 if self._loaded else 2, failed.why)
            case Exited() as exited:
                why = self._logs.end_of(exited.child, exited.how)
                self._tell_supervisor(replace(exited, how=why, heard_unix_s=time.time()))
            case Waiting() | HasRoom() | Forked() | Leaving() | Cleared() as news:
                self._tell_supervisor(news)
            case None:
                why = self._logs.end_of("nursery", self._nursery.end())
                if self._loaded:
                    self._tell_supervisor(supervision.NurseryEnded(why))
                else:
                    self._finish = Finish(2, f"The engine could not be loaded: {why}")
            case unknown:
                assert_never(unknown)

    def _on_loaded(self, ready: Ready) -> None:
        self._loaded = True
        address = address_of(self._arguments, ready)
        example = None if ready.example is None else (ready.example.path, ready.example.body)
        sentence = greeting(self._arguments, address, self._logs.path, example, self._environment)

        def serves() -> None:
            self._manager.ready()
            self._post(supervision.FrontEndServes(sentence))

        health = HealthWatch(address, serves)
        health.start()
        self._before_the_end.callback(socket_file.remover(address.unix_socket))
        self._before_the_end.callback(health.stop)
        self._tell_supervisor(supervision.TimePassed())

    # what is done

    def _tell_supervisor(self, event: supervision.SupervisorEvent) -> None:
        for command in self._supervisor.handle(event, self._clock.now()):
            self._carry_out(command)

    def _carry_out(self, command: supervision.SupervisorCommand) -> None:
        match command:
            case ForkInstance() | ForkFrontEnd() | StopListening():
                self._nursery.send(command)
            case supervision.SpawnScheduler():
                self._spawn_scheduler()
            case supervision.StopScheduler():
                if self._scheduler is not None:
                    self._scheduler.stop(command.kill)
            case supervision.Signal():
                polite = signal.SIGTERM if is_front_end(command.child) else END_NOW
                self._nursery.send(SignalChild(child=command.child, signal=signal.SIGKILL if command.kill else polite))
            case supervision.Announce():
                self._tell(command.message, command.to)
            case supervision.Forget():
                self._mailbox.forget(command.address)
            case supervision.Say():
                self._voice.say(command.text, command.warning)
            case Finish():
                self._finish = command
            case _:
                assert_never(command)

    def _spawn_scheduler(self) -> None:
        try:
            self._scheduler = SchedulerChild(
                scheduler_spec(self._arguments, self._book), self._environment, self._logs.file("scheduler")
            )
        except OSError as error:  # too many processes, too little memory, a full disk: it is tried again
            self._post(supervision.SchedulerExited(f"it cannot be started: {error}"))

    def _tell(self, message: Mail, audience: Audience) -> None:
        addresses: list[str] = []
        if audience is not Audience.SERVING:
            addresses.append(self._book.scheduler)
        if audience is not Audience.SCHEDULER:
            addresses += self._book.all_front_ends
        if audience in (Audience.SERVING, Audience.EVERYBODY):
            addresses += self._supervisor.mailboxes
        for address in addresses:
            self._mailbox.post(address, message)

    def _keep_house(self) -> None:
        elsewhere = self._supervisor.instances if self._arguments.cluster.launcher == "ray" else ()  # room.py does it
        self._logs.keep_small({"nursery", "scheduler", *self._supervisor.processes}.difference(elsewhere))
        known = {self._nursery.pid} | ({self._scheduler.pid} if self._scheduler is not None else set())
        reap_orphans(known)

    def _clean_up(self) -> None:
        """Nothing of ours runs or listens after this, however it came to it."""
        self._before_the_end.close()
        self._nursery.end()
        if self._scheduler is not None:
            self._scheduler.end()
        end_all_descendants()
        self._mailbox.close(nobody_reads=True)
