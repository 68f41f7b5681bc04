"""What an engine core has once it is open: its mailbox and heart, the llumlet's driver, and who reports and lists.

Messages reach the main thread by vLLM's input queue, as `CONTROL`: from the mailbox's thread, from the heart's, from
those that make requests. All that is not said to be another thread's runs on the main thread, between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any, Protocol, assert_never

import msgspec
from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request

from llumnix.control.messages import Commit, Copy, Prepare, Verdict
from llumnix.control.replay import LlumletBegin
from llumnix.control.scheduler_events import SetDraining, SetRole
from llumnix.engine.port import InstanceSpec
from llumnix.engine.vllm.instance.driver import LlumletDriver
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.engine.vllm.instance.following import Follower
from llumnix.engine.vllm.instance.heart import Heart
from llumnix.engine.vllm.instance.ledger import Ledger
from llumnix.engine.vllm.instance.listing import Listing
from llumnix.engine.vllm.instance.making import Maker
from llumnix.engine.vllm.instance.movable import why_engine_pins
from llumnix.engine.vllm.instance.reports import Reports
from llumnix.engine.vllm.instance.resume import Resumes
from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.snapshot import request_rows
from llumnix.engine.vllm.instance.state import decode_identity
from llumnix.engine.vllm.instance.stillness import Stillness
from llumnix.engine.vllm.instance.workers import Workers
from llumnix.recording import recorder
from llumnix.types import InstanceState
from llumnix.wire.base import Frame, InstanceInfo
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import FrontEndLost, InstanceGone
from llumnix.wire.to_front_end import RequestRow, Requests
from llumnix.wire.to_instance import (
    BlocksReleased,
    ClusterSize,
    ListRequests,
    MoveOut,
    Peer,
    PullEnded,
    TellPrefixes,
    ToInstance,
)

CONTROL = "llumnix"
"""Kind of our messages in `EngineCoreProc.input_queue`, beside vLLM's (which are bytes)."""


class Tick(msgspec.Struct, frozen=True):
    """The heart rang."""


class AskedToEnd(msgspec.Struct, frozen=True):
    """Its process is to end once it is empty, whoever orders what from now on."""


class PreparedPeer(msgspec.Struct, frozen=True):
    """A `Prepare`, with the request that it describes, or why none can be made of it."""

    peer: Peer
    made: Any


Control = Tick | PreparedPeer | AskedToEnd | partial[None] | ToInstance


class EngineCoreSide(Protocol):
    """What is used of the engine core."""

    scheduler: MigrationSupport
    structured_output_manager: Any
    vllm_config: VllmConfig
    workers: Workers
    input_queue: Any
    output_queue: Any

    def preprocess_add_request(self, request: EngineCoreRequest) -> tuple[Request, int]: ...
    def abort_requests(self, request_ids: list[str]) -> None: ...


class Office:
    """Whole when it is made; nobody hears of it before `open`."""

    def __init__(
        self,
        core: EngineCoreSide,
        spec: InstanceSpec,
        info: InstanceInfo,
        mailbox: Mailbox[ToInstance],
        follower: Follower,
        ledger: Ledger,
    ) -> None:
        self.info = info
        self._core = core
        self._spec = spec
        self._mailbox = mailbox
        self._heart = Heart(spec.cluster.heartbeat_interval_s, self._beat, self._ring)
        self._peer_maker = self._make_maker()  # used by the mailbox's thread alone
        self.driver = self._make_driver(follower)
        self.stillness = Stillness(core.scheduler, self.driver.incoming)
        self.resumes = Resumes(
            core.scheduler,
            core.workers,
            self._make_maker(),
            can_serve=follower.can_serve,
            to_main=lambda call: self.to_main(partial(call)),
        )
        self.reports = Reports(spec, core.scheduler, self.driver, mailbox, ledger.seen, core.input_queue.qsize)
        self.listing = Listing(partial(request_rows, core.scheduler, self.driver.engine_pins), self._answer, monotonic)

    def open(self) -> None:
        """Tells everybody. From here on requests and migrations come."""
        self.reports.take_role(self._spec.role)
        self.reports.send()
        self._heart.interval_s = self.reports.heartbeat_s
        self._mailbox.start()
        self._heart.start()

    def close(self) -> None:
        self._heart.stop()
        self._mailbox.close()
        self.resumes.close()

    # -- what happens

    def after_message(self) -> None:
        self.driver.after_step()
        self.stillness.look()
        self.reports.made_progress()

    def after_step(self) -> None:
        self.driver.after_step()
        self.stillness.look()
        self.reports.after_step()
        self.listing.go_on()

    def before_sleep(self) -> None:
        self.listing.finish()
        self.reports.before_sleep()

    # -- messages

    def on_mail(self, message: ToInstance, freight: Sequence[Frame] = ()) -> None:
        """On the mailbox's thread. What takes long (hashing a prompt, compiling a grammar), and what does not have to
        wait for the step in flight, happens here."""
        said = message.message if isinstance(message, Peer) else None
        if isinstance(message, Peer) and isinstance(said, Prepare):
            self._prepare(message, said.payload, freight)
            return
        if isinstance(said, Copy | Commit):
            self.driver.incoming.early.begin(said)
        self.to_main(message)

    def _prepare(self, peer: Peer, payload: bytes, freight: Sequence[Frame]) -> None:
        def made(request: Request | str) -> None:
            self.to_main(PreparedPeer(peer, request))

        window = self._core.scheduler.max_model_len
        try:
            identity = decode_identity(payload)
        except ValueError as error:
            made(f"what describes it cannot be read: {error}")
            return
        if identity.longest_tokens > window:  # it would end early, as if it had been asked for no more
            made(f"it may come to {identity.longest_tokens} tokens, more than the window here ({window})")
        else:
            self._peer_maker.start((identity.request, *freight), identity.output_token_ids, made)

    def to_main(self, message: Control) -> None:
        """From any thread: wakes the engine's main thread if it sleeps."""
        self._core.input_queue.put_nowait((CONTROL, message))

    def _beat(self) -> None:
        """On the heart's thread."""
        self.reports.beat()
        if self.reports.is_outdated:
            self._ring()  # the main thread makes another one before it sleeps again

    def _ring(self) -> None:
        """On the heart's thread."""
        self.to_main(Tick())

    def take(self, message: Control) -> None:
        driver = self.driver
        driver.tell_ends()  # an engine that is told to end has aborted all since its last step
        match message:
            case Tick():
                driver.tick()
            case PreparedPeer():
                driver.peer_said(message.peer, message.made)
            case Peer():
                driver.peer_said(message, None)
            case Verdict():
                driver.verdict(message)
            case MoveOut():
                driver.move_out(message)
            case PullEnded():
                driver.pull_ended(message)
            case BlocksReleased():
                driver.incoming.blocks_released(message)
            case AskedToEnd():
                self.reports.asked_to_end = True
                self._set_draining(True, keep=False)
            case partial():
                message()
            case ClusterSize() | SetDraining() | SetRole():
                self._take_order(message)
            case InstanceGone() | ListRequests() | FrontEndLost() | TellPrefixes():
                self._take_news(message)
            case _:
                assert_never(message)

    def _take_order(self, message: ClusterSize | SetDraining | SetRole) -> None:
        """The scheduler's, about the instance as a whole."""
        match message:
            case SetDraining():
                if not self.reports.asked_to_end:  # from there no order leads back
                    self._set_draining(message.draining, message.keep)
            case SetRole():
                self.reports.take_role(message.role)
            case ClusterSize():
                self.reports.set_size(message.instances)
                self._heart.interval_s = self.reports.heartbeat_s
            case _:
                assert_never(message)

    def _take_news(self, message: InstanceGone | ListRequests | FrontEndLost | TellPrefixes) -> None:
        """What has nothing to do with a single migration."""
        match message:
            case InstanceGone():
                self.driver.peer_lost(message.instance)
            case TellPrefixes():
                self.reports.tell_all_prefixes()
            case ListRequests():
                self.listing.ask(message)
            case FrontEndLost():
                self._abort_orphans(message)
            case _:
                assert_never(message)

    def _set_draining(self, draining: bool, keep: bool) -> None:
        self.reports.state = InstanceState.DRAINING if draining else InstanceState.RUNNING
        self.reports.drain_keep = keep
        self.driver.set_draining(draining)

    def _answer(self, question: ListRequests, rows: tuple[RequestRow, ...]) -> None:
        answer = Requests(query=question.query, instance=self.info.id, rows=rows)
        self._mailbox.post_soon((question.reply_to,), answer)

    def _abort_orphans(self, lost: FrontEndLost) -> None:
        """Relies on `arrival_time` being the front end's (vllm/v1/engine/input_processor.py)."""
        theirs = [one for one in self._core.scheduler.requests.values() if one.client_index == lost.front_end]
        self._core.abort_requests([one.request_id for one in theirs if one.arrival_time <= lost.until_unix_s])
        self.resumes.abort_all_of(lost.front_end, lost.until_unix_s)

    # -- making

    def _make_driver(self, follower: Follower) -> LlumletDriver:
        spec, core, mailbox = self._spec, self._core, self._mailbox
        begin = LlumletBegin(
            instance=spec.id,
            policy=spec.policy.policy,
            config=spec.migration,
            cooldown_s=spec.policy.request_cooldown_s,
        )
        engine = EngineAccess(
            info=self.info,
            scheduler=core.scheduler,
            structured_output=core.structured_output_manager,
            workers=core.workers,
            pins=why_engine_pins(core.vllm_config, core.scheduler.kv_cache_config),
            has_adapter=follower.has_adapter,
            post=mailbox.post,
            post_soon=mailbox.post_soon,
            ship=mailbox.ship,
            forget=mailbox.forget,
            put_output=core.output_queue.put_nowait,
            wake_at=self._heart.wake_at,
            clock=monotonic,
        )
        llumlet = begin.make(recorder(spec.id, begin))
        return LlumletDriver(engine, llumlet, spec.migration, spec.book, spec.policy.relief_steps)

    def _make_maker(self) -> Maker:
        core = self._core
        return Maker(lambda original: core.preprocess_add_request(original)[0], core.structured_output_manager)
