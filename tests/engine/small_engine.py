"""vLLM's scheduler, with our part in it, on a handful of blocks."""

from __future__ import annotations

import torch
from vllm.config import set_current_vllm_config
from vllm.config.scheduler import SchedulerPolicy
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from llumnix import tiny_model
from llumnix.engine.vllm.instance.scheduler import LlumnixScheduler
from llumnix.engine.vllm.instance.state import Passport

BLOCK_TOKENS = 16
BLOCKS = 13  # one of them is vLLM's null block
FULL = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=64, dtype=torch.float32)


class SmallEngine:
    """Schedules, and pretends that every request got a token."""

    def __init__(
        self,
        prefix_caching: bool = False,
        kinds: tuple[KVCacheSpec, ...] = (FULL,),
        scheduling_policy: SchedulerPolicy = "priority",
    ) -> None:
        """`kinds`: of blocks, all from one pool."""
        arguments = EngineArgs(
            model=str(tiny_model.ensure()),
            enforce_eager=True,
            max_model_len=2048,
            block_size=BLOCK_TOKENS,
            scheduling_policy=scheduling_policy,
            enable_prefix_caching=prefix_caching,
            async_scheduling=False,
        )
        config = arguments.create_engine_config()
        config.cache_config.num_gpu_blocks = BLOCKS
        groups = [KVCacheGroupSpec([f"layer {n}"], kind) for n, kind in enumerate(kinds)]
        if prefix_caching:
            init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK_TOKENS, sha256) if prefix_caching else None
        self._context = set_current_vllm_config(config)
        self._context.__enter__()
        self.scheduler = LlumnixScheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(BLOCKS, [], groups),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            log_stats=False,
        )
        self.arrives_s = 0.0
        """The last one, in seconds; the next comes a second later."""
        self.preempted: list[str] = []

    def close(self) -> None:
        self._context.__exit__(None, None, None)

    def make(self, name: str, priority: int, prompt_tokens: int, output_tokens: int = 500) -> Request:
        self.arrives_s += 1.0
        sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
        request = Request(
            *(name, [1] * prompt_tokens, sampling, None),
            arrival_time=self.arrives_s,
            priority=priority,
            block_hasher=self.hasher,
        )
        request._llumnix_passport = Passport(original=None)  # type: ignore[attr-defined, arg-type]
        return request

    def add(self, name: str, priority: int, prompt_tokens: int, output_tokens: int = 500) -> None:
        self.scheduler.add_request(self.make(name, priority, prompt_tokens, output_tokens))

    def replay(self, name: str, prompt_tokens: int) -> None:
        """As `Resumes` has it: it made tokens on an instance that died."""
        request = self.make(name, 0, prompt_tokens)
        request.append_output_token_ids([7, 7, 7])
        self.scheduler.adopt(request, computed_tokens=0)

    def step(self) -> None:
        before = {r.request_id: r.num_preemptions for r in self.scheduler.requests.values()}
        self.finish(self.scheduler.schedule())
        self.preempted += [name for name, r in self.scheduler.requests.items() if r.num_preemptions > before[name]]

    def finish(self, output: SchedulerOutput) -> None:
        self.scheduler.update_from_output(output, self.computed(list(output.num_scheduled_tokens)))

    @staticmethod
    def computed(names: list[str]) -> ModelRunnerOutput:
        return ModelRunnerOutput(names, {name: n for n, name in enumerate(names)}, [[7]] * len(names))

    @property
    def running(self) -> list[str]:
        return [request.request_id for request in self.scheduler.running]

    @property
    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
