"""What a step, a copy, a start and a message cost. Everything here is data from a profile (sim/profiles/*.toml).

Formulas, in milliseconds (as in the paper's own simulator, plus the quadratic attention term that it lacks):

    prefill(n after c)  = base + per_token·n + per_token_squared·((c+n)² − c²)
    decode(batch, ctx)  = batch_ms(batch) + per_context_token·ctx       ctx: sum of the sequence lengths
    mixed step          = decode(batch, ctx) + prefill without its base  (the weights are read once)
    any step            = what it computes + step_overhead + sequence_overhead·sequences   (the time between two steps)
    copy round of b     = stage + block_bytes·b / bandwidth
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from math import inf

from llumnix.errors import UsageError
from llumnix.policy.snapshot import StepCost


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UsageError(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProfile:
    """The KV cache of one instance."""

    total_blocks: int
    block_tokens: int = 16
    block_bytes: int = 8 * 1024 * 1024
    state_blocks: int = 0
    """Blocks that each request holds beyond those of its tokens, for a state that every token overwrites."""

    def __post_init__(self) -> None:
        _require(self.total_blocks >= 1, "memory.total_blocks must be at least 1.")
        _require(self.block_tokens >= 1, "memory.block_tokens must be at least 1.")
        _require(self.block_bytes >= 1, "memory.block_bytes must be at least 1.")
        _require(
            0 <= self.state_blocks < self.total_blocks,
            "memory.state_blocks must be from 0 to below memory.total_blocks.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillProfile:
    base_ms: float
    per_token_ms: float
    per_token_squared_ms: float = 0.0

    def __post_init__(self) -> None:
        _require(self.base_ms >= 0 and self.per_token_ms > 0, "prefill needs base_ms >= 0 and per_token_ms > 0.")
        _require(self.per_token_squared_ms >= 0, "prefill.per_token_squared_ms must not be negative.")

    def compute_ms(self, tokens: int, context: int = 0) -> float:
        """Time of computing `tokens` after `context` others, without what a step costs anyway."""
        return self.per_token_ms * tokens + self.per_token_squared_ms * (tokens * (tokens + 2 * context))

    def step_ms(self, tokens: int) -> float:
        """Time of a step that prefills one prompt of `tokens` tokens and nothing else."""
        return self.base_ms + self.compute_ms(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeProfile:
    """`batch_ms[i]` is the time of a step of `batch[i]` sequences without context; linear in between and beyond."""

    batch: tuple[int, ...]
    batch_ms: tuple[float, ...]
    per_context_token_ms: float

    def __post_init__(self) -> None:
        _require(
            len(self.batch) == len(self.batch_ms) >= 2,
            "decode.batch and decode.batch_ms need two entries each, or more.",
        )
        _require(
            all(low < high for low, high in zip(self.batch, self.batch[1:], strict=False)) and self.batch[0] >= 1,
            "decode.batch must grow and start at 1 or more.",
        )
        _require(min(self.batch_ms) > 0, "decode.batch_ms must be above 0.")
        _require(self.per_context_token_ms >= 0, "decode.per_context_token_ms must not be negative.")

    def batch_step_ms(self, size: int) -> float:
        """Step time of `size` sequences without context."""
        right = min(max(bisect_left(self.batch, size), 1), len(self.batch) - 1)
        low, high = self.batch[right - 1], self.batch[right]
        low_ms, high_ms = self.batch_ms[right - 1], self.batch_ms[right]
        return max(low_ms + (high_ms - low_ms) * (size - low) / (high - low), 1e-3)

    def step_ms(self, size: int, context_tokens: int) -> float:
        return self.batch_step_ms(size) + self.per_context_token_ms * context_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationProfile:
    gigabytes_per_s: float
    stage_ms: float
    """Fixed cost of one copy round, and of the hand-over."""
    slowdown: float = 0.0
    """By how much a step of either side takes longer while a copy runs (0.02: 2 %)."""

    def __post_init__(self) -> None:
        _require(0 < self.gigabytes_per_s < inf, "migration.gigabytes_per_s must be above 0, and a number.")
        _require(self.stage_ms >= 0 and self.slowdown >= 0, "migration.stage_ms and .slowdown must not be negative.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerProfile:
    """Which local scheduler the instance has, and its limits (names as in vLLM)."""

    kind: str = "vllm-1"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    watermark: float = 0.0
    """Share of the blocks that admission leaves free."""
    priorities: bool = True
    """High-priority requests go first in the queue and are preempted last."""

    def __post_init__(self) -> None:
        _require(self.kind in ("vllm-0.1", "vllm-1"), f"scheduler.kind must be vllm-0.1 or vllm-1, not {self.kind!r}.")
        _require(self.max_num_seqs >= 1, "scheduler.max_num_seqs must be at least 1.")
        _require(self.max_num_batched_tokens >= 1, "scheduler.max_num_batched_tokens must be at least 1.")
        _require(0 <= self.watermark < 1, "scheduler.watermark must be at least 0 and below 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """What happens around the steps."""

    step_overhead_ms: float = 0.0
    """Between two steps of an instance."""
    sequence_overhead_ms: float = 0.0
    """Besides, per sequence of the batch: handling its token between two steps."""
    request_ms: float = 0.0
    """From the front end's door into the queue of an instance (tokenising, sending)."""
    message_ms: float = 0.2
    """One control message or load report, one way."""
    start_up_s: float = 5.0
    """From the decision to start an instance to its first request."""

    def overhead_s(self, sequences: int) -> float:
        """Between two steps, the first of which produced tokens for so many sequences."""
        return (self.step_overhead_ms + self.sequence_overhead_ms * sequences) / 1e3

    def __post_init__(self) -> None:
        for name in ("step_overhead_ms", "sequence_overhead_ms", "request_ms", "message_ms", "start_up_s"):
            _require(getattr(self, name) >= 0, f"host.{name} must not be negative.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model on one kind of device, as measured or published. See docs/measure/profiles.md."""

    name: str
    origin: str
    """Where the numbers come from; a profile without an origin is not accepted."""
    memory: MemoryProfile
    prefill: PrefillProfile
    decode: DecodeProfile
    migration: MigrationProfile
    scheduler: SchedulerProfile
    host: HostProfile

    def __post_init__(self) -> None:
        _require(bool(self.origin.strip()), "A profile must say in `origin` where its numbers come from.")

    @property
    def watermark_blocks(self) -> int:
        return int(self.scheduler.watermark * self.memory.total_blocks)

    @property
    def max_sequence_tokens(self) -> int:
        """The longest sequence that an empty instance can hold to its end."""
        memory = self.memory
        return max(0, memory.total_blocks - self.watermark_blocks - memory.state_blocks) * memory.block_tokens

    def copy_s(self, blocks: int) -> float:
        """Duration of one copy round of `blocks` blocks on an otherwise free link."""
        copied = blocks * self.memory.block_bytes / (self.migration.gigabytes_per_s * 1e9)
        return self.migration.stage_ms / 1e3 + copied

    def with_scheduler(self, **changes: object) -> Profile:
        """The same device under other scheduler limits; raises UsageError for a bad one."""
        return replace(self, scheduler=replace(self.scheduler, **changes))  # type: ignore[arg-type]


def step_cost(profile: Profile, factor: float = 1.0) -> StepCost:
    """What an instance of this profile would fit to its steps, times `factor`: decoding by the line through its first
    and its last measured batch, prompts without the term of long ones."""
    decode, host = profile.decode, profile.host
    first, last = decode.batch[0], decode.batch[-1]
    request_ms = max(0.0, (decode.batch_ms[-1] - decode.batch_ms[0]) / (last - first))
    fixed_ms = max(0.0, decode.batch_ms[0] - request_ms * first)
    return StepCost(
        fixed_ms=factor * (fixed_ms + host.step_overhead_ms),
        prefill_token_us=factor * 1e3 * profile.prefill.per_token_ms,
        request_us=factor * 1e3 * (request_ms + host.sequence_overhead_ms),
        context_token_us=factor * 1e3 * decode.per_context_token_ms,
    )
