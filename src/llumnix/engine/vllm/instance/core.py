"""vLLM's engine core with a llumlet in it.

A subclass of `EngineCoreProc` (vllm/v1/engine/core.py): no handshake, our control messages in its input
queue, the llumlet's driver between its steps. Scheduling, execution and the sockets to the front ends are
vLLM's own.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from threading import Lock
from time import monotonic
from typing import Any

import msgspec
from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor.abstract import Executor
from vllm.v1.request import Request

from llumnix.control.server_state import ServerState
from llumnix.engine.port import InstanceSpec
from llumnix.engine.vllm.between import FURTHER_CHUNK, LAST_WORD, THROWN_AWAY, TURNED_AWAY, Introduction, Resume
from llumnix.engine.vllm.curve_sockets import guard_engine_sockets
from llumnix.engine.vllm.instance.following import Follower
from llumnix.engine.vllm.instance.ledger import Ledger
from llumnix.engine.vllm.instance.movable import why_engine_pins
from llumnix.engine.vllm.instance.office import CONTROL, AskedToEnd, Office
from llumnix.engine.vllm.instance.prefixes import prefixes_of
from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.state import stamp
from llumnix.engine.vllm.instance.step_watch import StepWatch
from llumnix.engine.vllm.instance.warm_up import warm_up_requests
from llumnix.engine.vllm.instance.workers import Workers
from llumnix.policy.catalogue import find_policy
from llumnix.wire.base import Frame, InstanceInfo
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import FrontEndLost
from llumnix.wire.to_instance import INSTANCE_MAIL, ToInstance

log = logging.getLogger(__name__)


class LlumnixEngineCore(EngineCoreProc):
    """Call `open_for_business` once it is built, then `run_busy_loop`, then `close`."""

    scheduler: MigrationSupport

    def __init__(self, spec: InstanceSpec, vllm_config: VllmConfig, *, log_stats: bool) -> None:
        self._spec = spec
        self._office: Office | None = None
        self._ledger = Ledger(spec.book.front_ends)
        self._follower = Follower(self)
        self._grammars = Lock()
        self._seeds_lost = ""
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
        count = vllm_config.parallel_config.world_size
        self.workers = Workers(self.model_executor, count, self._on_worker_failure)

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
        wanted = find_policy(spec.policy.policy).looks_at_prefixes(spec.policy)
        self.scheduler.prefixes = prefixes_of(self.scheduler, wanted, spec.policy.prefix_chunk_tokens)
        self.workers.ask("llumnix_draw_apart", spec.index)
        self.scheduler.obey(spec.policy)
        mailbox = Mailbox(spec.book.instance(spec.id), INSTANCE_MAIL, self._on_mail, spec.book.keys, self._on_mail)
        moves = not why_engine_pins(self.vllm_config, self.scheduler.kv_cache_config)
        opened = spec.book, mailbox.address, spec.secret, moves, spec.ways, spec.migration.max_incoming
        addresses = self.workers.open(mailbox.post, *opened)
        self._seeds_lost = next(filter(None, self.workers.ask("llumnix_why_seeds_are_lost")), "")
        info = InstanceInfo(
            id=spec.id,
            index=spec.index,
            slot=spec.slot,
            pid=pid,
            node=spec.node,
            control=mailbox.address,
            data=msgspec.json.encode(addresses).decode(),
        )
        self._office = Office(self, spec, info, mailbox, self._follower, self._ledger)
        self._office.open()

    @property
    def office(self) -> Office:
        """Once it is open; before, nobody asks."""
        assert self._office is not None
        return self._office

    def ask_to_drain(self) -> None:
        """From a thread, once it is open: it takes no more requests and says so, and the scheduler empties it."""
        self.office.to_main(AskedToEnd())

    def close(self) -> None:
        if self._office is not None:
            self._mark(range(self._spec.book.front_ends), LAST_WORD, [""])
            self._office.close()
            self.workers.ask("llumnix_close")
        self.shutdown()

    # -- overridden: what comes in

    def preprocess_add_request(self, request: EngineCoreRequest) -> tuple[Request, int]:
        """On several threads, where vLLM knows one: what it makes with the first grammar is made once."""
        sampling = request.sampling_params
        structured = sampling is not None and sampling.structured_outputs is not None
        with self._grammars if structured else nullcontext():
            made, wave = super().preprocess_add_request(request)
        stamp(made, request)
        if self.scheduler.prefixes is not None:
            self.scheduler.prefixes.name(made)
        return made, wave

    def abort_requests(self, request_ids: list[str]) -> None:
        self.office.resumes.abort(request_ids)
        super().abort_requests(request_ids)

    def _handle_request_preproc_error(self, request: EngineCoreRequest) -> None:
        if request.current_wave != FURTHER_CHUNK:
            self._ledger.refused[request.client_index] += 1
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
        office = self.office
        office.reports.begins()
        if request_type == CONTROL:
            office.take(request)
        elif request_type == EngineCoreRequestType.ADD:
            self._add(*request)
        else:
            super()._handle_client_request(request_type, request)
        office.after_message()

    def _add(self, request: Request, wave: int) -> None:
        """Unless it lacks its adapter here. Counted it is anyway, for the front end's ledger."""
        if wave != FURTHER_CHUNK:
            self._ledger.added[request.client_index] += 1
        if self._follower.can_serve(request.lora_request):
            super()._handle_client_request(EngineCoreRequestType.ADD, (request, wave))
        else:
            self._send_error_outputs_to_client([request.request_id], request.client_index)

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> Any:
        """As vLLM's, which fails where blocks stay taken when nothing runs. Here those of requests on the move do: then
        the answer is a Future."""
        reset = partial(super().reset_prefix_cache, reset_running_requests, reset_connector)
        return self.office.stillness.when_still(reset) if reset_running_requests else reset()

    def _pause_complete(self) -> bool:
        """A pause resets caches, too."""
        stillness = self.office.stillness
        if not stillness.now:
            stillness.when_still(lambda: None)  # nothing new begins
        return super()._pause_complete() and stillness.now

    def _notify_idle_state_callbacks(self) -> None:
        """vLLM calls this each time before the engine falls asleep on its queue."""
        if self.office.stillness.now:
            super()._notify_idle_state_callbacks()  # of pauses; some take long
        self.scheduler.watch.rests()
        self.office.before_sleep()

    def _process_input_queue(self) -> None:
        super()._process_input_queue()
        self._await_last_blocks()

    def _await_last_blocks(self) -> None:
        """Holds the next step for a moment while the last blocks of a request are on their way here.

        They are few. The moment costs the batch here less than a whole step more would cost the request, which
        stands still until they have come.
        """
        incoming = self.office.driver.incoming
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
        for request in self.scheduler.thrown_away.take():
            self._mark((request.client_index,), THROWN_AWAY, [request.request_id])
        self.office.after_step()
        return executed

    # -- utilities that a front end calls (`AsyncMPClient._call_utility_async`)

    def llumnix_hello(self) -> bytes:
        """First contact: proves both sockets. The answer is a `Introduction`; its rank is the one in its KV events."""
        ready = msgspec.msgpack.encode(replace(self._make_ready_response(), data_parallel_rank=self._spec.slot))
        snapshot = self.office.reports.introduce()
        introduction = Introduction(ready=ready, snapshot=snapshot, seeds_lost=self._seeds_lost)
        return msgspec.msgpack.encode(introduction)

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
        self._ledger.added[resume.front_end] += 1
        return self.office.resumes.start(resume)

    # -- for the office

    def _on_mail(self, message: ToInstance, freight: Sequence[Frame] = ()) -> None:
        """On the mailbox's thread."""
        if isinstance(message, FrontEndLost) and self._lines is not None:
            self._lines.excuse(message.front_end)
        self.office.on_mail(message, freight)

    def _on_worker_failure(self, error: BaseException) -> None:
        """As vLLM has it where a worker ends: the engine does."""
        log.error("a worker failed at what it was told", exc_info=error)
        self.input_queue.put_nowait((EngineCoreRequestType.EXECUTOR_FAILED, b""))

    def _warm_up(self) -> None:
        """Short requests, start to end: the first step of an engine is slow (lazy kernels, allocations)."""
        if self.vllm_config.model_config.runner_type != "generate":
            return
        for one in warm_up_requests():
            request, wave = self.preprocess_add_request(one)
            self.add_request(request, wave)
            while self.scheduler.has_requests() or self.batch_queue:
                self.step_fn()
        self.scheduler.ended.clear()
        self.scheduler.watch = StepWatch()  # nor do later ones cost what the first did
