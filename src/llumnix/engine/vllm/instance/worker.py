"""What a vLLM worker does for a migration: serve its KV blocks, pull blocks of a peer, hand over sampler state.

Mixed into vLLM's worker by `worker_extension_cls` and called through `collective_rpc`, so every name is
prefixed (a name that the worker has already is an error in vLLM's `worker_base.py`). Block ids are the
scheduler's. Bytes move in threads of the transport; the end of a pull is posted to the instance's mailbox,
which works the same whether the worker lives in the engine's process or in one of its own. A worker that has a process
of its own has a mailbox, too, so that pulls do not wait for the steps that its main thread computes.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import threading
from typing import Any, assert_never

import torch

from llumnix import linux, text_logs
from llumnix.engine.shared_memory import note_shared_memory
from llumnix.engine.vllm.compiled_models import load_compiled_models
from llumnix.engine.vllm.instance.ending import end_without_collecting
from llumnix.engine.vllm.instance.seeds import generator_after, why_seeds_are_lost
from llumnix.engine.vllm.versions import draw_apart
from llumnix.transport.port import PullResult, Transport
from llumnix.types import RequestId
from llumnix.wire.addresses import AddressBook
from llumnix.wire.curve import CurveKeys
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.outbox import Outbox
from llumnix.wire.to_instance import BlocksReleased, PullEnded
from llumnix.wire.to_worker import WORKER_MAIL, CancelPulls, ForgetPeer, PullBlocks, ToWorker

# All here: vLLM imports this module in each process of a worker before it makes the worker, the model and its groups.
load_compiled_models()
if multiprocessing.parent_process() is not None:
    gc.enable()  # it was off until all is imported (nursery.py)
    linux.die_with_parent(os.getppid())  # vLLM has it notice by itself, once it is ready, if it does not hang
    text_logs.begin_in_worker()


class WorkerExtension:
    """Relies on the worker's `model_runner`, `device`, `rank`, `vllm_config` (vllm/v1/worker/gpu_worker.py)."""

    _llumnix_transport: Transport | None
    _llumnix_outbox: Outbox
    _llumnix_mailbox: Mailbox[ToWorker] | None = None
    _llumnix_keys: CurveKeys | None
    """Whoever orders connects with these, on one machine, too."""
    _llumnix_control: str
    _llumnix_pulls: dict[tuple[RequestId, int, int], Any]
    """Those in flight."""
    _llumnix_media: dict[str, dict[str, Any]]
    """Of requests on their way here."""
    _llumnix_lock: threading.Lock
    """Held until a pull that starts is in `_llumnix_pulls`, so that its end always finds it there."""

    # given by vLLM's worker
    model_runner: Any
    device: torch.device
    rank: int
    vllm_config: Any

    def llumnix_open(
        self, book: AddressBook, control: str, secret: bytes, moves: bool, ways: list[str], max_incoming: int
    ) -> str:
        """Starts to serve this worker's KV blocks, unless its engine moves nothing: what such a one has for a cache may
        not be blocks at all. `ways`: by which peers may read them themselves. `max_incoming`: requests that come here
        at once. Returns the transport's address, empty if there is none."""
        from llumnix.engine.vllm.instance.kv_pool import open_transport

        self._llumnix_transport = open_transport(self, book, secret, ways, max_incoming) if moves else None
        self._llumnix_keys = book.keys
        self._llumnix_outbox = Outbox(book.keys)
        self._llumnix_control = control
        self._llumnix_pulls = {}
        self._llumnix_media = {}
        self._llumnix_lock = threading.Lock()
        if self.device.type == "cpu":
            self._mend_for_cpu()
        note_shared_memory()
        return "" if self._llumnix_transport is None else self._llumnix_transport.address

    def _mend_for_cpu(self) -> None:
        from llumnix.engine.vllm.instance.plain_sampling import sample_plainly
        from llumnix.engine.vllm.instance.seeded_prefill import make_patient

        sample_plainly()
        make_patient(self.model_runner)
        if self.vllm_config.lora_config is not None:
            from llumnix.engine.vllm.instance.without_adapter import make_strict

            make_strict(self.model_runner.lora_manager)

    def llumnix_listen(self) -> str:
        """Address of a mailbox of its own (ToWorker); empty where it shares the engine's process, and is called."""
        if multiprocessing.parent_process() is None:
            return ""
        threading.excepthook = linux.die_with_the_thread
        address = f"ipc://{tempfile.gettempdir()}/orders-{self.rank}"  # the folder is the instance's own
        self._llumnix_mailbox = Mailbox(address, WORKER_MAIL, self.llumnix_take, self._llumnix_keys)
        self._llumnix_mailbox.start()
        return address

    def llumnix_take(self, order: ToWorker) -> None:
        """On the mailbox's thread, or the engine's main thread."""
        match order:
            case PullBlocks():
                self._llumnix_pull(order)
            case CancelPulls():
                self._llumnix_cancel(order)
            case ForgetPeer():
                self._llumnix_forget_peer(order)
            case _:
                assert_never(order)

    def llumnix_draw_apart(self, index: int) -> None:
        """From here on draws for requests without a seed as no other instance does.

        Forked from one configuration, all have vLLM's own seed: equal requests at two of them would get equal answers.
        `index` is never used twice, so not even a successor repeats what its predecessor drew. The seed is mixed as
        vLLM mixes it for its data parallel ranks: `--seed` still decides everything, and 0 draws as a vLLM alone.
        """
        draw_apart(self.vllm_config.model_config.seed, index)

    def _llumnix_pull(self, order: PullBlocks) -> None:
        """Copies blocks from the peer's worker of the same rank; a `PullEnded` to the instance says how it went."""
        key = (order.request, order.epoch, order.stage)
        named: dict[str, Any] = {"request": key[0], "epoch": key[1], "stage": key[2], "rank": self.rank}

        def done(result: PullResult) -> None:
            with self._llumnix_lock:
                self._llumnix_pulls.pop(key, None)
            ended = PullEnded(
                **named,
                ok=result.ok,
                reason=result.reason,
                bytes_read=result.bytes_read,
                quarantined=result.quarantined,
            )
            self._llumnix_outbox.post(self._llumnix_control, ended)

        def released() -> None:
            self._llumnix_outbox.post(self._llumnix_control, BlocksReleased(**named))

        assert self._llumnix_transport is not None  # who moves nothing takes nothing
        with self._llumnix_lock:
            self._llumnix_pulls[key] = self._llumnix_transport.pull(
                order.addresses[self.rank],
                order.source_blocks,
                order.target_blocks,
                order.timeout_s,
                on_done=done,
                on_released=released,
            )

    def _llumnix_cancel(self, order: CancelPulls) -> None:
        """Ends them early."""
        attempt = (order.request, order.epoch)
        with self._llumnix_lock:
            pulls = [pull for key, pull in self._llumnix_pulls.items() if key[:2] == attempt]
        for pull in pulls:
            pull.cancel()

    def _llumnix_forget_peer(self, order: ForgetPeer) -> None:
        if self._llumnix_transport is not None:
            self._llumnix_transport.forget(order.addresses[self.rank])

    def llumnix_sampler_state(self, request_id: str) -> bytes | None:
        """State of the request's random generator; None if it has none.

        Relies on `CachedRequestState.generator` of the V1 runner (vllm/v1/worker/gpu_input_batch.py). The V2
        runner derives its seeds from seed and position and has nothing to hand over.
        """
        request = getattr(self.model_runner, "requests", {}).get(request_id)
        generator = getattr(request, "generator", None)
        return None if generator is None else generator.get_state().numpy().tobytes()

    def llumnix_why_seeds_are_lost(self) -> str:
        """Why a request with a seed whose owner died could not go on exactly here, or an empty string."""
        return why_seeds_are_lost(self.model_runner, self.vllm_config, self.device)

    def llumnix_expect(self, request_id: str, media: dict[str, Any]) -> None:
        """What a request that may be installed has beside its tokens (`announce`): megabytes, on their way to each
        worker while the request still runs elsewhere."""
        self._llumnix_media[request_id] = media

    def llumnix_forget(self, request_id: str) -> None:
        """It is not installed after all."""
        self._llumnix_media.pop(request_id, None)

    def llumnix_install(self, request: dict[str, Any]) -> None:
        """Makes the V1 runner know a request as one that was preempted here; the V2 runner needs nothing.

        A resumed request is looked up in `model_runner.requests` by `_update_states`
        (vllm/v1/worker/gpu_model_runner.py); block ids and tokens come with the scheduler's output. M-RoPE positions
        are computed as there, from the prompt and the sizes of its images.
        """
        if not hasattr(self.model_runner, "requests"):
            return
        from vllm.v1.worker.gpu_input_batch import CachedRequestState

        if request["sampler_state"] is None:  # there is none, or nobody knows it any more
            generator = generator_after(request["sampling_params"], request["drawn_tokens"], self.device)
        else:
            generator = torch.Generator(device=self.device)
            generator.set_state(torch.frombuffer(bytearray(request["sampler_state"]), dtype=torch.uint8))
        media = self._llumnix_media.pop(request["id"], {})
        state = CachedRequestState(
            req_id=request["id"],
            prompt_token_ids=request["prompt_token_ids"],
            mm_features=media.get("mm_features", []),
            sampling_params=request["sampling_params"],
            generator=generator,
            block_ids=tuple([] for _ in self.model_runner.kv_cache_config.kv_cache_groups),
            num_computed_tokens=request["num_computed_tokens"],
            output_token_ids=list(request["output_token_ids"]),
            lora_request=request["lora_request"],
            prompt_embeds=media.get("prompt_embeds"),
            prompt_is_token_ids=media.get("prompt_is_token_ids"),
        )
        self.model_runner.requests[request["id"]] = state
        if self.model_runner.uses_mrope:
            self.model_runner._init_mrope_positions(state)

    def llumnix_wait_for_device(self) -> None:
        """Returns once all that the engine has launched is computed."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def llumnix_zero_blocks(self, blocks: list[int]) -> None:
        """Overwrites blocks with zeros: the negative control of the equality tests."""
        from llumnix.engine.vllm.instance.kv_views import kv_views

        for view in kv_views(self.model_runner):
            view[torch.tensor(blocks, device=view.device)] = 0

    def llumnix_close(self) -> None:
        end_without_collecting()
        if self._llumnix_mailbox is not None:
            self._llumnix_mailbox.close()
        if self._llumnix_transport is not None:
            self._llumnix_transport.close()
        self._llumnix_outbox.close()
