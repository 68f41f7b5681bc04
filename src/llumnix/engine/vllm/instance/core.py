"""vLLM's engine core with a llumlet in it.

A subclass of `EngineCoreProc` (vllm/v1/engine/core.py): no handshake, our control messages in its input
queue, the llumlet's driver between its steps. Scheduling, execution and the sockets to the front ends are
vLLM's own.
"""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, assert_never

import msgspec
from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor.abstract import Executor
from vllm.v1.request import Request

from llumnix.control.messages import Prepare, Verdict
from llumnix.control.replay import LlumletBegin
from llumnix.control.scheduler_events import SetDraining
from llumnix.control.server_state import ServerState
from llumnix.engine.port import InstanceSpec
from llumnix.engine.vllm.between import LAST_WORD, TURNED_AWAY, Introduction, Resume
from llumnix.engine.vllm.curve_sockets import guard_engine_sockets
from llumnix.engine.vllm.instance.driver import LlumletDriver
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.engine.vllm.instance.following import Follower
from llumnix.engine.vllm.instance.heart import Heart
from llumnix.engine.vllm.instance.listing import Listing
from llumnix.engine.vllm.instance.making import Maker
from llumnix.engine.vllm.instance.movable import why_engine_pins
from llumnix.engine.vllm.instance.reports import Reports
from llumnix.engine.vllm.instance.resume import Resumes
from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.snapshot import request_rows
from llumnix.engine.vllm.instance.state import decode_identity, stamp
from llumnix.engine.vllm.instance.stillness import Stillness
from llumnix.policy.catalogue import find_policy
from llumnix.recording import recorder
from llumnix.types import InstanceState
from llumnix.wire.base import InstanceInfo
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import FrontEndLost, InstanceGone
from llumnix.wire.to_front_end import RequestRow, Requests
from llumnix.wire.to_instance import (
    INSTANCE_MAIL,
    BlocksReleased,
    ClusterSize,
    ListRequests,
    MoveOut,
    Peer,
    PullEnded,
    ToInstance,
)

CONTROL = "llumnix"
"""Kind of our messages in `EngineCoreProc.input_queue`, beside vLLM's (which are bytes)."""


HANG = signal.SIGUSR2
"""With the fault `hang`, at this signal the main thread stands still for ever, while all others go on."""


def _hang(*_: object) -> None:
    while True:
        time.sleep(3600)


class Tick(msgspec.Struct, frozen=True):
    """The heart rang."""


class AskedToEnd(msgspec.Struct, frozen=True):
    """Its process is to end once it is empty, whoever orders what from now on."""


class PreparedPeer(msgspec.Struct, frozen=True):
    """A `Prepare`, with the request that it describes, or why none can be made of it."""

    peer: Peer
    made: Any


class LlumnixEngineCore(EngineCoreProc):
    """Call `open_for_business` once it is built, then `run_busy_loop`, then `close`."""

    scheduler: MigrationSupport

    def __init__(self, spec: InstanceSpec, vllm_config: VllmConfig, *, log_stats: bool) -> None:
        self._spec = spec
        # Never reset: a front end that takes a dead one's place begins to count where it says hello.
        self._added = [0] * spec.book.front_ends
        self._refused = [0] * spec.book.front_ends  # counted by the input thread alone
        self._driver: LlumletDriver | None = None
        self._follower = Follower(self)
        keys = spec.book.keys
        self._lines = None if keys is None else guard_engine_sockets(spec.book, keys)
        super().__init__(
            vllm_config,
            local_client=True,
            handshake_address="",
            executor_class=Executor.get_class(vllm_config),
            log_stats=log_stats,
            engine_index=spec.index,
        )

    @contextmanager
    def _perform_handshakes(self, *args: Any, **kwargs: Any) -> Generator[EngineZmqAddresses, None, None]:
        """All addresses are in the address book: there is nobody to shake hands with.

        vLLM's `EngineCoreActorMixin` overrides the same method for the same reason.
        """
        fronts = self._spec.book.fronts
        yield EngineZmqAddresses(
            inputs=[front.requests for front in fronts], outputs=[front.tokens for front in fronts]
        )

    def open_for_business(self, pid: int) -> None:
        """Warms up, opens the ways in and tells everybody. From here on requests and migrations come."""
        spec = self._spec
        self._warm_up()
        self.rpc("llumnix_draw_apart", args=(spec.index,))
        displaces = spec.policy.displace and self.scheduler.policy == SchedulingPolicy.PRIORITY
        self.scheduler.makes_way = displaces and find_policy(spec.policy.policy).priorities
        self._mailbox = Mailbox(spec.book.instance(spec.id), INSTANCE_MAIL, self._on_mail, spec.book.keys)
        moves = not self._why_pinned
        addresses = self.rpc("llumnix_open", args=(spec.book, self._mailbox.address, spec.secret, moves))
        self._info = InstanceInfo(
            id=spec.id,
            index=spec.index,
            slot=spec.slot,
            pid=pid,
            node=spec.node,
            control=self._mailbox.address,
            data=msgspec.json.encode(addresses).decode(),
        )
        self._peer_maker = self._make_maker()  # used by the mailbox's thread alone
        self._heart = Heart(spec.cluster.heartbeat_interval_s, self._beat, self._ring)
        self._driver = self._make_driver()
        self._stillness = Stillness(self.scheduler, self._driver.incoming)
        self._resumes = self._make_resumes()
        self._reports = Reports(
            spec, self.scheduler, self._driver, self._mailbox, self._dispatches_seen, self.input_queue.qsize
        )
        self._listing = Listing(
            partial(request_rows, self.scheduler, self._driver.engine_pins), self._answer_listing, monotonic
        )
        self._reports.send()
        self._heart.interval_s = self._reports.heartbeat_s
        self._mailbox.start()
        self._heart.start()

    def ask_to_drain(self) -> None:
        """From a thread, once it is open: it takes no more requests and says so, and the scheduler empties it."""
        self._to_main(AskedToEnd())

    def inject_fault(self, fault: str) -> None:
        """Lets something fail on purpose; an empty string is no fault. Raises ValueError for an unknown one."""
        assert self._driver is not None
        if fault not in ("", "zero-arrivals", "hang"):
            raise ValueError(f"unknown fault {fault!r}")
        self._driver.incoming.zero_arrivals = fault == "zero-arrivals"
        if fault == "hang":
            signal.signal(HANG, _hang)

    def close(self) -> None:
        if self._driver is not None:
            self._mark(range(self._spec.book.front_ends), LAST_WORD, [""])
            self._heart.stop()
            self._mailbox.close()
            self._resumes.close()
            self.rpc("llumnix_close")
        self.shutdown()

    # -- overridden: what comes in

    def preprocess_add_request(self, request: EngineCoreRequest) -> tuple[Request, int]:
        made, wave = super().preprocess_add_request(request)
        stamp(made, request)
        return made, wave

    def abort_requests(self, request_ids: list[str]) -> None:
        self._resumes.abort(request_ids)
        super().abort_requests(request_ids)

    def _handle_request_preproc_error(self, request: EngineCoreRequest) -> None:
        self._refused[request.client_index] += 1
        super()._handle_request_preproc_error(request)

    def _send_abort_outputs_to_client(self, req_ids: list[str], client_index: int) -> None:
        """What an engine that ends did not take, or gives up, goes on elsewhere: no client is to see its end."""
        if self.shutdown_state == EngineShutdownState.RUNNING:  # somebody asked for it (POST /pause?mode=abort)
            super()._send_abort_outputs_to_client(req_ids, client_index)
        else:
            self._mark((client_index,), TURNED_AWAY, req_ids)

    def _mark(self, front_ends: Iterable[int], mark: str, request_ids: list[str]) -> None:
        """Says something that is no output, in the token streams of front ends."""
        for front_end in front_ends:
            marked = [EngineCoreOutput(each, [], kv_transfer_params={mark: True}) for each in request_ids]
            self.output_queue.put_nowait((front_end, EngineCoreOutputs(outputs=marked)))

    def _handle_client_request(self, request_type: Any, request: Any) -> None:
        if self._driver is not None:
            self._reports.begins()
        if request_type == CONTROL:
            self._on_control(request)
        else:
            if request_type == EngineCoreRequestType.ADD:
                self._count(request[0])
            if request_type == EngineCoreRequestType.ADD and not self._follower.can_serve(request[0].lora_request):
                self._send_error_outputs_to_client([request[0].request_id], request[0].client_index)
            else:
                super()._handle_client_request(request_type, request)
        if self._driver is not None:
            self._driver.after_step()
            self._stillness.look()
            self._reports.made_progress()

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> Any:
        """As vLLM's, which fails where blocks stay taken when nothing runs. Here those of requests on the move do: then
        the answer is a Future."""
        reset = partial(super().reset_prefix_cache, reset_running_requests, reset_connector)
        return self._stillness.when_still(reset) if reset_running_requests else reset()

    def _pause_complete(self) -> bool:
        """A pause resets caches, too."""
        return super()._pause_complete() and self._stillness.now

    def _notify_idle_state_callbacks(self) -> None:
        """vLLM calls this each time before the engine falls asleep on its queue."""
        if self._stillness.now:
            super()._notify_idle_state_callbacks()  # of pauses; some take long
        self._listing.finish()
        self._reports.before_sleep()

    def _process_input_queue(self) -> None:
        super()._process_input_queue()
        self._await_last_blocks()

    def _await_last_blocks(self) -> None:
        """Holds the next step for a moment while the last blocks of a request are on their way here.

        They are few. The moment costs the batch here less than a whole step more would cost the request, which
        stands still until they have come.
        """
        assert self._driver is not None
        incoming = self._driver.incoming
        if not incoming or not incoming.awaits_last_blocks:
            return
        until = monotonic() + self._spec.migration.last_blocks_grace_s
        while incoming.awaits_last_blocks and (left_s := until - monotonic()) > 0:
            try:
                kind, message = self.input_queue.get(timeout=left_s)
            except queue.Empty:
                return
            self._handle_client_request(kind, message)

    def _process_engine_step(self) -> bool:
        executed = super()._process_engine_step()
        assert self._driver is not None
        self._driver.after_step()
        self._stillness.look()
        self._reports.after_step()
        self._listing.go_on()
        return executed

    def _count(self, request: Request) -> None:
        """For the front end's ledger: a further chunk of a streaming session is no dispatch."""
        if request.request_id not in self.scheduler.requests:
            self._added[request.client_index] += 1

    def _dispatches_seen(self) -> tuple[int, ...]:
        return tuple(added + refused for added, refused in zip(self._added, self._refused, strict=True))

    # -- utilities that a front end calls (`AsyncMPClient._call_utility_async`)

    def llumnix_hello(self) -> bytes:
        """First contact: proves both sockets. The answer is a `Introduction`."""
        ready = msgspec.msgpack.encode(self._make_ready_response())
        return msgspec.msgpack.encode(Introduction(ready=ready, snapshot=self._reports.make().snapshot))

    def llumnix_follow(self, state: bytes) -> bytes | Future[bytes]:
        """Where the server as a whole is: a `ServerState`, answered with an `Applied`."""
        return self._follower.follow(msgspec.msgpack.decode(state, type=ServerState))

    def add_lora(self, lora_request: Any) -> bool:
        """As vLLM's, which turns the call's arguments into what the signature says; ours says nothing, being text."""
        lora = msgspec.convert(lora_request, LoRARequest)
        loaded = super().add_lora(lora)
        self._follower.loaded(lora.lora_int_id)
        return loaded

    def llumnix_resume(self, payload: bytes) -> Future[None]:
        """Token replay: takes up a request where its dead owner left it. The payload is a `Resume`."""
        resume = msgspec.msgpack.decode(payload, type=Resume)
        self._added[resume.front_end] += 1
        return self._resumes.start(resume)

    # -- control

    def _on_mail(self, message: ToInstance) -> None:
        """On the mailbox's thread. What takes long (hashing a prompt, compiling a grammar) happens here."""
        if isinstance(message, FrontEndLost) and self._lines is not None:
            self._lines.excuse(message.front_end)
        if isinstance(message, Peer) and isinstance(message.message, Prepare):
            self._prepare(message, message.message.payload)
        else:
            self._to_main(message)

    def _prepare(self, peer: Peer, payload: bytes) -> None:
        def made(request: Request | str) -> None:
            self._to_main(PreparedPeer(peer, request))

        try:
            identity = decode_identity(payload)
        except msgspec.DecodeError as error:
            made(f"what describes it cannot be read: {error}")
        else:
            self._peer_maker.start(identity.request, identity.output_token_ids, made)

    def _to_main(self, message: Any) -> None:
        """From any thread: wakes the engine's main thread if it sleeps."""
        self.input_queue.put_nowait((CONTROL, message))  # type: ignore[arg-type]

    def _on_control(self, message: Tick | PreparedPeer | AskedToEnd | partial[None] | ToInstance) -> None:
        driver = self._driver
        assert driver is not None
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
                self._reports.asked_to_end = True
                self._set_draining(True, keep=False)
            case partial():
                message()
            case SetDraining() | InstanceGone() | ListRequests() | FrontEndLost() | ClusterSize():
                self._on_news(message)
            case _:
                assert_never(message)

    def _on_news(self, message: SetDraining | InstanceGone | ListRequests | FrontEndLost | ClusterSize) -> None:
        """What has nothing to do with a single migration."""
        driver = self._driver
        assert driver is not None
        match message:
            case SetDraining():
                if not self._reports.asked_to_end:  # from there no order leads back
                    self._set_draining(message.draining, message.keep)
            case InstanceGone():
                driver.peer_lost(message.instance)
            case ListRequests():
                self._listing.ask(message)
            case FrontEndLost():
                self._abort_orphans(message)
            case ClusterSize():
                self._reports.set_size(message.instances)
                self._heart.interval_s = self._reports.heartbeat_s
            case _:
                assert_never(message)

    def _set_draining(self, draining: bool, keep: bool) -> None:
        assert self._driver is not None
        self._reports.state = InstanceState.DRAINING if draining else InstanceState.RUNNING
        self._reports.drain_keep = keep
        self._driver.set_draining(draining)

    def _answer_listing(self, question: ListRequests, rows: tuple[RequestRow, ...]) -> None:
        answer = Requests(query=question.query, instance=self._info.id, rows=rows)
        self._mailbox.post_soon((question.reply_to,), answer)

    def _abort_orphans(self, lost: FrontEndLost) -> None:
        """Relies on `arrival_time` being the front end's (vllm/v1/engine/input_processor.py)."""
        theirs = [one for one in self.scheduler.requests.values() if one.client_index == lost.front_end]
        self.abort_requests([one.request_id for one in theirs if one.arrival_time <= lost.until_unix_s])
        self._resumes.abort_all_of(lost.front_end, lost.until_unix_s)

    # -- the heart's thread

    def _beat(self) -> None:
        self._reports.beat()

    def _ring(self) -> None:
        self._to_main(Tick())

    # -- making

    def _make_driver(self) -> LlumletDriver:
        spec = self._spec
        config = self.vllm_config
        begin = LlumletBegin(
            instance=spec.id,
            policy=spec.policy.policy,
            config=spec.migration,
            cooldown_s=spec.policy.request_cooldown_s,
        )
        llumlet = begin.make(recorder(spec.id, begin))
        engine = EngineAccess(
            info=self._info,
            scheduler=self.scheduler,
            structured_output=self.structured_output_manager,
            rpc=self.rpc,
            ranks=config.parallel_config.world_size,
            pins=self._why_pinned,
            has_adapter=self._follower.has_adapter,
            post=self._mailbox.post,
            post_soon=self._mailbox.post_soon,
            forget=self._mailbox.forget,
            put_output=self.output_queue.put_nowait,
            wake_at=self._heart.wake_at,
            clock=monotonic,
        )
        return LlumletDriver(engine, llumlet, spec.migration, spec.book, spec.policy.relief_steps)

    @property
    def _why_pinned(self) -> str:
        return why_engine_pins(self.vllm_config, self.scheduler.kv_cache_config)

    def _make_resumes(self) -> Resumes:
        return Resumes(
            self.scheduler,
            self.rpc,
            self._make_maker(),
            can_serve=self._follower.can_serve,
            to_main=lambda call: self._to_main(partial(call)),
        )

    def _make_maker(self) -> Maker:
        return Maker(lambda original: self.preprocess_add_request(original)[0], self.structured_output_manager)

    def rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Calls a method of `WorkerExtension` on every worker."""
        answers: list[Any] = self.model_executor.collective_rpc(method, args=args)
        return answers

    def _warm_up(self) -> None:
        """One short request, start to end: the first step of an engine is slow (lazy kernels, allocations)."""
        from vllm.sampling_params import SamplingParams

        if self.vllm_config.model_config.runner_type != "generate":
            return
        original = EngineCoreRequest(
            request_id="llumnix-warm-up",
            prompt_token_ids=[1, 2, 3, 4],
            mm_features=None,
            sampling_params=SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True),
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        request, wave = self.preprocess_add_request(original)
        self.add_request(request, wave)
        while self.scheduler.has_requests() or self.batch_queue:
            self.step_fn()
        self.scheduler.ended.clear()
