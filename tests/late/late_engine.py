"""A real engine core with our llumlet in it, on a device that is late. No process, no thread, no socket, no clock."""

from __future__ import annotations

import queue
from functools import cache
from threading import Lock
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import msgspec
import vllm.v1.engine.core as vllm_core
from late_device import BLOCK_TOKENS, BLOCKS, DRAFTS, MAX_TOKENS, SPECS, LateDevice, LateExecutor
from late_drafts import DraftingDevice
from late_wires import LateWorker, Wires
from vllm import envs
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequestType
from vllm.v1.engine.core import EngineCore, EngineShutdownState
from vllm.v1.kv_cache_interface import MambaSpec

from at_once import AtOnce
from llumnix import tiny_model
from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.engine.port import InstanceSpec
from llumnix.engine.vllm.instance import office as office_module
from llumnix.engine.vllm.instance.core import LlumnixEngineCore
from llumnix.engine.vllm.instance.following import Follower
from llumnix.engine.vllm.instance.ledger import Ledger
from llumnix.engine.vllm.instance.office import CONTROL, Office
from llumnix.engine.vllm.instance.workers import Workers
from llumnix.types import InstanceId
from llumnix.wire.addresses import AddressBook, FrontAddresses
from llumnix.wire.base import InstanceInfo
from llumnix.wire.outbox import Mail

FRONT_END = "front end"


@cache
def late_config(layout: str, drafts: bool) -> VllmConfig:
    """As on a GPU: asynchronous scheduling, and the V2 runner's side of the scheduler."""
    drafter = {"method": "draft_model", "model": str(tiny_model.ensure()), "num_speculative_tokens": DRAFTS}
    states = [spec for spec in SPECS[layout].values() if isinstance(spec, MambaSpec)]
    arguments = EngineArgs(
        model=str(tiny_model.ensure()),
        enforce_eager=True,
        max_model_len=MAX_TOKENS,
        block_size=BLOCK_TOKENS,
        num_gpu_blocks_override=BLOCKS,
        enable_prefix_caching=all(spec.mamba_cache_mode == "align" for spec in states),
        scheduling_policy="priority",
        max_num_seqs=6,
        max_num_batched_tokens=24,
        speculative_config=drafter if drafts else None,
    )
    config = arguments.create_engine_config()
    for spec in states:
        config.cache_config.mamba_cache_mode = spec.mamba_cache_mode  # type: ignore[assignment]
    config.scheduler_config.async_scheduling = True
    config.scheduler_config.scheduler_cls = "llumnix.engine.vllm.instance.scheduler.LlumnixAsyncScheduler"
    return config


def _spec(name: str, index: int) -> InstanceSpec:
    front = FrontAddresses(control=FRONT_END, requests="", tokens="")
    return InstanceSpec(
        id=InstanceId(name),
        index=index,
        slot=index,
        device_slot=index,
        node="here",
        book=AddressBook(run_dir="", launcher="", scheduler="", fronts=(front,)),
        policy=PolicyConfig(),
        migration=MigrationConfig(),
        cluster=ClusterConfig(),
        secret=b"",
    )


class LateCore(LlumnixEngineCore):
    """vLLM's core and ours, but for what starts threads or opens sockets."""

    def __init__(self, name: str, index: int, layout: str, drafts: bool = False) -> None:
        self._spec = _spec(name, index)
        self._office = None
        self._lines = None
        self._follower = Follower(self)
        self._grammars = Lock()
        config = late_config(layout, drafts)
        device = DraftingDevice if drafts else LateDevice
        executor = type("Executor", (LateExecutor,), {"layout": layout, "device_class": device})
        with patch.dict("os.environ", VLLM_USE_V2_MODEL_RUNNER="1"), set_current_vllm_config(config):
            EngineCore.__init__(self, config, executor, log_stats=False)
        envs.disable_envs_cache()  # it would keep the variable for whoever comes after us in this process
        self.input_queue = queue.Queue()
        self.output_queue = queue.Queue()
        self.shutdown_state = EngineShutdownState.RUNNING
        self.engines_running = False

    def begin(self, wires: Wires, ranks: int = 1) -> None:
        """As if it had just started, with so many workers: nothing of an earlier test is left."""
        old, spec = self.scheduler, self._spec
        name, index = spec.id, spec.index
        data = msgspec.json.encode([name] * ranks).decode()
        self._info = InstanceInfo(id=name, index=index, slot=index, pid=0, node="here", control=name, data=data)
        self.workers = Workers(self.model_executor, ranks, self._on_worker_failure)
        config = self.vllm_config
        with patch.dict("os.environ", VLLM_USE_V2_MODEL_RUNNER="1"), set_current_vllm_config(config):
            self.scheduler = type(old)(
                vllm_config=config,
                kv_cache_config=old.kv_cache_config,
                structured_output_manager=self.structured_output_manager,
                block_size=old.block_size,
                hash_block_size=old.block_size,
                log_stats=False,
            )
        assert self.batch_queue is not None
        self.batch_queue.clear()
        self._ledger = Ledger(1)
        executor: Any = self.model_executor
        wires.devices[name] = self.device = executor.new_device(old.kv_cache_config)
        executor.device = self.device
        executor.workers = [LateWorker(name, wires, rank, ranks) for rank in range(ranks)]
        self.alarm: float | None = None
        self._idle_state_callbacks = []
        mailbox: Any = wires
        heart = SimpleNamespace(wake_at=self._wake_at)
        with (
            patch.dict("os.environ", VLLM_USE_V2_MODEL_RUNNER="1"),  # it looks what can move
            patch.object(office_module, "monotonic", lambda: wires.now_s),
            patch.object(office_module, "Heart", lambda *_: heart),
        ):
            self._office = office = Office(self, self._spec, self._info, mailbox, self._follower, self._ledger)
        office.resumes._thread = AtOnce()  # type: ignore[assignment]
        office.reports, office.listing = Mock(), Mock()

    def _wake_at(self, at: float) -> None:
        self.alarm = at

    def hear(self, kind: Any, message: Any) -> None:
        """From a front end (vLLM's kinds), or what a thread of ours has for the main thread."""
        self._handle_client_request(kind, message)
        self.read_mail()

    def mail(self, message: Mail, in_step: bool = False) -> None:
        """`in_step`: the main thread is in a step, and looks at it later."""
        self._on_mail(message)  # type: ignore[arg-type]
        if not in_step:
            self.read_mail()

    def add(self, request: Any) -> None:
        self.hear(EngineCoreRequestType.ADD, self.preprocess_add_request(request))

    def abort(self, name: str) -> None:
        self.hear(EngineCoreRequestType.ABORT, [name])

    def read_mail(self) -> None:
        while not self.input_queue.empty():
            kind, message = self.input_queue.get_nowait()
            assert kind == CONTROL  # type: ignore[comparison-overlap]
            self._handle_client_request(kind, message)

    @property
    def moving(self) -> bool:
        """Some request is on its way in or out, or has come and is not confirmed."""
        driver = self.office.driver
        attempts = driver._loop.llumlet.attempts
        return bool(attempts.sources or attempts.targets or driver.incoming)

    @property
    def busy(self) -> bool:
        return self.scheduler.has_requests() or bool(self.batch_queue)

    def step(self) -> None:  # type: ignore[override]
        """One turn of vLLM's loop: a step more in flight, or the output of the oldest one. Its nap while nothing can
        be scheduled is left out."""
        with patch.object(vllm_core, "time", SimpleNamespace(sleep=lambda _: None)):
            self._process_engine_step()
        self.read_mail()

    def leftovers(self) -> str:
        """What is not as in a new engine once all is over, in words."""
        scheduler = self.scheduler
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        found = {
            "blocks taken": BLOCKS - 1 - free,
            "pins": scheduler.tables.pinned,
            "slots kept": len(scheduler.places),
            "requests": len(scheduler.requests),
            "pulls": sum(len(each._llumnix_pulls) for each in self.model_executor.workers),
        }
        return ", ".join(f"{count} {what}" for what, count in found.items() if count)

    def said(self) -> list[EngineCoreOutputs]:
        outputs: list[Any] = []
        while not self.output_queue.empty():
            outputs.append(self.output_queue.get_nowait()[1])
        return outputs
