"""Reservations at the target: a request that is on its way in, its blocks, and the pulls that fill them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.request import Request, RequestStatus

from llumnix.control.messages import Commit, Copy
from llumnix.engine.vllm.instance.arriving_blocks import ArrivingBlocks, Reservation
from llumnix.engine.vllm.instance.early_pulls import EarlyPulls, Key, NoAdapter, Origin, Refusal
from llumnix.engine.vllm.instance.grammar import follow
from llumnix.engine.vllm.instance.making import GRAMMAR_REFUSED
from llumnix.engine.vllm.instance.media import announce, retract
from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.state import Hand, passport_of
from llumnix.engine.vllm.instance.workers import Workers
from llumnix.types import RequestId
from llumnix.wire.to_instance import BlocksReleased, PullEnded


class IncomingRequests:
    """Owns every reservation of one engine. Called on the engine's main thread only."""

    def __init__(
        self,
        scheduler: MigrationSupport,
        structured_output: Any,
        workers: Workers,
        has_adapter: Callable[[int], bool],
    ) -> None:
        """`has_adapter`: whether requests may use the LoRA adapter with this id."""
        self._scheduler = scheduler
        self._structured_output = structured_output
        self._workers = workers
        self._has_adapter = has_adapter
        self.early = EarlyPulls(workers.order)
        self._blocks = ArrivingBlocks(scheduler, workers, self.early)
        self._reservations: dict[Key, Reservation] = {}
        self.closed = ""
        """Why no request is taken just now; empty if they are."""
        self.zero_arrivals = False
        """Fault injection for the equality tests: what is pulled is overwritten with zeros."""

    def __len__(self) -> int:
        return len(self._reservations)

    @property
    def awaits_last_blocks(self) -> bool:
        """Whether some request is between its two instances, and only bytes on their way keep it from running here."""
        return any(
            each.last and each.pulling and not each.held_back and not each.dropped
            for each in self._reservations.values()
        )

    def reserve(self, key: Key, request: Request, blocks: int, origin: Origin) -> int:
        """Reserves blocks, and its places in the batch and in a step; returns how many blocks are cached here. Raises
        Refusal."""
        scheduler = self._scheduler
        if self.closed:
            raise Refusal(self.closed)
        if scheduler.pause_state == PauseState.PAUSED_NEW:  # it would run here, beside whoever waits for the end of all
            raise Refusal("it is paused")
        if request.request_id != key[0]:
            raise Refusal("what describes it is of another request")
        # One that has just left would be forgotten by the workers with the next step, after it has come again.
        if any(key[0] in here for here in (scheduler.requests, scheduler.finished_req_ids)) or any(
            known == key[0] for known, _ in self._reservations
        ):
            raise Refusal("a copy of the request is still here")
        lora = request.lora_request
        if lora is not None and not self._has_adapter(lora.lora_int_id):
            raise NoAdapter(f"the adapter {lora.lora_name!r} is not loaded here")
        tokens = max(request.num_tokens, (blocks - 1) * scheduler.block_tokens + 1)
        if tokens > scheduler.max_model_len:
            raise Refusal(f"{tokens} tokens are more than the window here ({scheduler.max_model_len})")
        skip_blocks = 0
        if blocks:
            if not scheduler.places.has_slot():
                raise Refusal(f"all {scheduler.max_num_active_reqs} batch slots are taken")
            if not scheduler.places.has_adapter_place(request):
                raise NoAdapter("other adapters have all places that a step has for them")
            cached_tokens = scheduler.reserve(request, blocks)
            if cached_tokens is None:
                free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
                raise Refusal(f"no room: {blocks} blocks and a spare one are needed, {free} are free")
            skip_blocks = cached_tokens // scheduler.block_tokens
            scheduler.places.arriving[key[0]] = request
        reservation = Reservation(request, keeps_slot=blocks > 0, origin=origin, here_blocks=skip_blocks)
        self._reservations[key] = reservation
        announce(request, scheduler, self._workers)
        self._blocks.lay_out(key, reservation)
        return skip_blocks

    def pull(self, key: Key, message: Copy | Commit) -> bool:
        """Starts to pull what the message names, or finds it begun; False when there is nothing to pull. Raises
        Refusal."""
        return self._blocks.pull(key, self._reservations[key], message)

    def after_step(self) -> None:
        """Begins, and lays out, what had to wait for a step."""
        for key, reservation in self._reservations.items():
            self._blocks.after_step(key, reservation)

    def pull_ended(self, ended: PullEnded) -> tuple[bool, str, int] | None:
        """(ok, reason, bytes) once the last rank of a stage is through; None before, or when nobody waits."""
        key = (ended.request, ended.epoch)
        reservation = self._reservations.get(key)
        if reservation is None:
            return None
        is_over = self._blocks.ended(key, reservation, ended)
        if reservation.dropped:
            self._free_if_quiet(key, reservation)
            return None
        if not is_over:
            return None
        if self.zero_arrivals:
            self._workers.ask("llumnix_zero_blocks", self._all_blocks(reservation))
        return not reservation.failed, reservation.failed, reservation.bytes_read

    def blocks_released(self, released: BlocksReleased) -> None:
        key = (released.request, released.epoch)
        reservation = self._reservations.get(key)
        if reservation is not None:
            reservation.quarantined.discard((released.stage, released.rank))
            if reservation.dropped:
                self._free_if_quiet(key, reservation)

    def install(self, key: Key, hand: Hand, now_s: float) -> int:
        """Turns the reservation into a request of this engine; returns its output tokens. Raises Refusal."""
        reservation, scheduler = self._reservations[key], self._scheduler
        self._blocks.begin_no_more(key, reservation)
        request = reservation.request
        if hand.computed_tokens and not scheduler.grow(request, hand.computed_tokens + scheduler.spare_tokens):
            raise Refusal("no spare block for its next tokens")
        if not hand.computed_tokens:
            scheduler.release_reservation(request)  # preempted since it asked for room: it comes without KV
        request.num_preemptions = hand.preemptions
        self._follow(request, hand)
        del self._reservations[key]
        self._give_slot_back(reservation)
        if not scheduler.use_v2_model_runner:  # which needs nothing: a request stands still while its worker is told
            self._introduce(request, hand)
        passport = passport_of(request)
        passport.migrations, passport.moved_s = hand.migrations, now_s
        passport.preempted_s, passport.robbed_s = hand.preempted_s, hand.robbed_s
        if not request.num_output_tokens:
            self._tell_prefill(request, hand.cached_tokens)
        scheduler.adopt(request, hand.computed_tokens)
        return request.num_output_tokens

    def _tell_prefill(self, request: Request, cached_tokens: int) -> None:
        """With its first token, which is still to come. vLLM takes note of a prompt when it begins to compute it from
        its start, and not for one that was preempted before."""
        assert request.prefill_stats is not None
        request.prefill_stats.set(request.num_prompt_tokens, cached_tokens, 0)
        if self._scheduler.log_stats:
            request.record_event(EngineCoreEventType.QUEUED)  # its metrics count from then

    def _introduce(self, request: Request, hand: Hand) -> None:
        if request.num_output_tokens:
            self._workers.tell("llumnix_install", for_worker(request, hand.computed_tokens, hand.sampler_state))
        else:
            retract(request, self._scheduler, self._workers)

    def confirmed(self, request_id: RequestId) -> None:
        """It is this instance's, if it is still here: others may begin with what it brought."""
        scheduler = self._scheduler
        request = scheduler.requests.get(request_id)
        if request is not None and scheduler.tables.unconfirmed.confirmed(request) and scheduler.prefixes is not None:
            scheduler.prefixes.holds(request)

    def drop(self, key: Key) -> None:
        """Gives the reservation back, as soon as no byte can land in its blocks any more."""
        reservation = self._reservations.get(key)
        if reservation is None or reservation.dropped:
            return
        reservation.dropped = True
        self._give_slot_back(reservation)
        self._blocks.call_off(key, reservation)
        self._free_if_quiet(key, reservation)

    def _free_if_quiet(self, key: Key, reservation: Reservation) -> None:
        if not reservation.pulling and not reservation.quarantined:
            self._scheduler.release_reservation(reservation.request)
            retract(reservation.request, self._scheduler, self._workers)
            del self._reservations[key]

    def _give_slot_back(self, reservation: Reservation) -> None:
        if reservation.keeps_slot:
            reservation.keeps_slot = False
            del self._scheduler.places.arriving[reservation.request.request_id]

    def _follow(self, request: Request, hand: Hand) -> None:
        """To where the source has come since it sent `Prepare`. The grammar was compiled, and has walked so far, before
        the reservation was made."""
        if not follow(request, self._structured_output, hand.output_token_ids[request.num_output_tokens :]):
            raise Refusal(GRAMMAR_REFUSED)
        structured = request.structured_output_request
        if structured is None:
            return
        if request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            request.status = RequestStatus.WAITING
        if bool(structured.reasoning_ended) != bool(hand.reasoning_ended):
            raise Refusal("its reasoning ends elsewhere here")

    def _all_blocks(self, reservation: Reservation) -> list[int]:
        return [block.block_id for block in self._scheduler.tables.held(reservation.request.request_id)]


def for_worker(
    request: Request, computed_tokens: int = 0, sampler_state: bytes | None = None, thrown_away: int = 0
) -> dict[str, Any]:
    """What `llumnix_install` takes. `thrown_away`: tokens that were drawn beside its output; matters only where its
    sampler's state is not known."""
    return {
        "id": request.request_id,
        "prompt_token_ids": request.prompt_token_ids,
        "output_token_ids": list(request.output_token_ids),
        "sampling_params": request.sampling_params,
        "lora_request": request.lora_request,
        "num_computed_tokens": computed_tokens,
        "sampler_state": sampler_state,
        "drawn_tokens": request.num_output_tokens + thrown_away,
    }
