"""An accelerator that is late: it is given steps and runs them when it likes, at the latest when their output is read.

Its KV cache is an array of numbers. The cell of a position is made of the cell before it and of the token there, as the
KV of a real model depends on all tokens before; so two requests may share a block exactly when they share everything up
to its end, and a cell that somebody else wrote is seen. Tokens are made of cells: who reads a wrong one says a wrong
token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

BLOCK_TOKENS = 4
BLOCKS = 32  # one of them is vLLM's null block
MAX_TOKENS = 64
DRAFTS = 3
WINDOW = 8  # whole blocks: whoever rounds up what is computed loses one that is still in it
VOCABULARY = 97
_START = 0x9E3779B97F4A7C15
_ALL_BITS = (1 << 64) - 1

Tables = tuple[list[int], ...]
"""Block ids per KV group."""


_SHAPE: dict[str, Any] = {"block_size": BLOCK_TOKENS, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
_FULL = FullAttentionSpec(**_SHAPE)
_STATE: dict[str, Any] = {"shapes": ((64,),), "dtypes": (torch.float32,)}  # as many bytes as a block of tokens
SPECS: dict[str, dict[str, KVCacheSpec]] = {
    "full": {"full": _FULL},
    "windows": {"full": _FULL, "window": SlidingWindowSpec(**_SHAPE, sliding_window=WINDOW)},
    "chunks": {"full": _FULL, "chunk": ChunkedLocalAttentionSpec(**_SHAPE, attention_chunk_size=WINDOW)},
    "two precisions": {
        "full": _FULL,
        "window": SlidingWindowSpec(**{**_SHAPE, "head_size": 16, "dtype": torch.bfloat16}, sliding_window=WINDOW),
    },
    "states": {"full": _FULL, "state": MambaSpec(block_size=MAX_TOKENS, **_STATE)},
    "snapshots": {"full": _FULL, "state": MambaSpec(block_size=BLOCK_TOKENS, mamba_cache_mode="align", **_STATE)},
    "states of drafts": {
        "full": _FULL,
        "state": MambaSpec(block_size=MAX_TOKENS, num_speculative_blocks=DRAFTS, **_STATE),
    },
    "states alone": {"state": MambaSpec(block_size=MAX_TOKENS, **_STATE)},
}
"""Per layout of the KV cache, its layers: each is a group of its own."""


def cell_after(before: int, token: int) -> int:
    """What a position holds, of what the one before it holds and its token."""
    mixed = (before ^ (token + 1)) * 0xBF58476D1CE4E5B9 & _ALL_BITS
    return mixed ^ (mixed >> 29)


def chain(tokens: Sequence[int], cells: list[int] | None = None) -> list[int]:
    """The right cells of a sequence, going on from those that are known."""
    cells = [] if cells is None else cells
    for token in tokens[len(cells) :]:
        cells.append(cell_after(cells[-1] if cells else _START, token))
    return cells


def token_after(cell: int) -> int:
    return (cell >> 7) % VOCABULARY


@dataclass(slots=True)
class Row:
    """A request, as the runner of vLLM's V2 keeps it."""

    name: str
    tokens: list[int]
    tables: Tables
    cells: list[int] = field(default_factory=list)
    """The right ones."""
    drafts: list[int] = field(default_factory=list)
    accepted: int = 0
    """Drafts of its last step: the state is in as many blocks after the first. Nobody else knows, and it is forgotten
    when the request goes."""


@dataclass(slots=True)
class Part:
    row: Row
    first: int
    """As far as the scheduler knows: drafts of a step in flight are not rejected yet."""
    count: int
    tables: Tables
    drafts: int
    """Of `count`."""

    @property
    def begin(self) -> int:
        return min(self.first, len(self.row.tokens) - 1)

    @property
    def end(self) -> int:
        """Of what is no draft."""
        return self.begin + self.count - self.drafts


@dataclass(frozen=True, slots=True)
class Group:
    """What its layers read and write."""

    spec: KVCacheSpec

    @property
    def is_state(self) -> bool:
        """One cell, which is that of the last token."""
        return isinstance(self.spec, MambaSpec)

    def lowest(self, first: int) -> int:
        """The first position that a step from `first` on reads."""
        match self.spec:
            case SlidingWindowSpec():
                return max(0, first - self.spec.sliding_window + 1)
            case ChunkedLocalAttentionSpec():
                return first // self.spec.attention_chunk_size * self.spec.attention_chunk_size
            case MambaSpec():
                return max(0, first - 1)
            case _:
                return 0

    def place(self, table: list[int], position: int, drafts: int = 0) -> tuple[int, int]:
        """Block and cell. `drafts`: after as many, if it is a state."""
        first = position // self.spec.block_size
        return (table[first + drafts], 0) if self.is_state else (table[first], position % self.spec.block_size)


class Step(Future[ModelRunnerOutput]):
    """Runs at the latest when its result is asked for."""

    def __init__(self, device: LateDevice, parts: list[Part]) -> None:
        super().__init__()
        self.parts = parts
        self.zeroed: list[int] = []
        """Blocks, before all else."""
        self._device = device

    def result(self, timeout: float | None = None) -> ModelRunnerOutput:
        while not self.done():
            self._device.run_next()
        return super().result(timeout)


class LateDevice:
    def __init__(self, groups: Sequence[Group], zeroes: bool) -> None:
        """`zeroes`: new blocks for tokens must be zeroed before they are used."""
        self.kv: NDArray[np.uint64] = np.zeros((BLOCKS, BLOCK_TOKENS), dtype=np.uint64)
        self.launched: deque[Step] = deque()
        self.wrong: list[str] = []
        """Cells that were not what a step had to find, in words."""
        self._groups = groups
        self._zeroes = zeroes
        self._to_zero: list[int] = []
        self._rows: dict[str, Row] = {}

    def launch(self, output: SchedulerOutput) -> Step:
        """As the V2 runner: rows and block tables are those of the moment, the tokens those of the steps before."""
        for name in output.finished_req_ids | (output.preempted_req_ids or set()):
            self._rows.pop(name, None)
        for new in output.scheduled_new_reqs:
            assert new.prefill_token_ids is not None
            self._rows[new.req_id] = Row(new.req_id, list(new.prefill_token_ids), new.block_ids)
        first = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        for name, computed, blocks in zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
        ):
            first[name] = computed
            if blocks is not None:
                for table, more in zip(self._rows[name].tables, blocks, strict=True):
                    table.extend(more)
        self._to_zero += output.new_block_ids_to_zero or ()
        step = Step(self, [])
        for name, count in output.num_scheduled_tokens.items():
            row = self._rows[name]
            step.zeroed, self._to_zero = [*step.zeroed, *self._to_zero], []
            drafts = len(output.scheduled_spec_decode_tokens.get(name, ()))
            step.parts.append(Part(row, first[name], count, tuple(list(table) for table in row.tables), drafts))
        self.launched.append(step)
        return step

    def run_next(self) -> None:
        step = self.launched.popleft()
        self.kv[step.zeroed] = 0
        sampled = [self._run(part) for part in step.parts]
        names = [part.row.name for part in step.parts]
        step.set_result(ModelRunnerOutput(names, {name: n for n, name in enumerate(names)}, sampled))

    def _run(self, part: Part) -> list[int]:
        """Reads all cells before its own, writes those of its tokens; the next token where the sequence ends there."""
        row, begin, end = part.row, part.begin, part.end
        assert end <= len(row.tokens), f"{row.name}: a step up to token {end}, of which {len(row.tokens)} are known"
        chain(row.tokens, row.cells)
        for group, each in enumerate(self._groups):
            for position in range(each.lowest(begin), begin):
                self._check(part, group, position)
        before = self._cell(part, 0, begin - 1) if begin else _START
        for position in range(begin, end):
            before = self._compute(part, position, row.tokens[position], before, 0 if position == end - 1 else None)
        row.accepted = 0
        if end < len(row.tokens):
            return []
        row.tokens.append(token_after(before))
        return [row.tokens[-1]]

    def _compute(self, part: Part, position: int, token: int, before: int, drafts: int | None) -> int:
        """`drafts`: how many come before it, and that its state is kept; None for tokens before the last known one."""
        cell = cell_after(before, token)
        for group in range(len(self._groups)):
            self._write(part, group, position, cell, drafts)
        return cell

    def _write(self, part: Part, group: int, position: int, cell: int, drafts: int | None) -> None:
        kind = self._groups[group]
        if kind.is_state:
            if drafts is not None:
                self.kv[kind.place(part.tables[group], position, drafts)[0]] = cell ^ group
            return
        block, offset = kind.place(part.tables[group], position)
        if self._zeroes and self.kv[block, offset:].any():
            self.wrong.append(f"{part.row.name}: block {block} of group {group} was not zeroed after cell {offset}")
        self.kv[block, offset] = cell ^ group

    def _cell(self, part: Part, group: int, position: int) -> int:
        return int(self.kv[self._groups[group].place(part.tables[group], position)]) ^ group

    def _check(self, part: Part, group: int, position: int) -> None:
        where = self._groups[group].place(part.tables[group], position, part.row.accepted)
        if int(self.kv[where]) ^ group != part.row.cells[position]:
            block, _ = where
            self.wrong.append(f"{part.row.name}: token {position} of group {group} in block {block}")


class LateExecutor(Executor):
    """As much of an executor as vLLM's engine core asks of it. What workers are asked goes to `workers`."""

    layout = "full"
    device_class: type[LateDevice] = LateDevice

    def _init_executor(self) -> None:
        self.workers: list[Any] = []
        self.device = self.device_class([], zeroes=False)

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        return [SPECS[self.layout]]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        return [["LBHNC"]]

    def set_kv_cache_layout(self, layout_name: str) -> None:
        pass

    def determine_available_memory(self) -> list[int]:
        return [1 << 30]

    def initialize_from_config(self, kv_cache_configs: list[KVCacheConfig]) -> None:
        self.device = self.new_device(kv_cache_configs[0])

    def new_device(self, config: KVCacheConfig) -> LateDevice:
        groups = [Group(each.kv_cache_spec) for each in config.kv_cache_groups]
        return self.device_class(groups, config.needs_kv_cache_zeroing)

    def compile_or_warm_up_model(self) -> None:
        pass

    def check_health(self) -> None:
        pass

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        assert non_block
        self._step = self.device.launch(scheduler_output)
        nothing: Future[ModelRunnerOutput | None] = Future()
        nothing.set_result(None if self._step.parts else EMPTY_MODEL_RUNNER_OUTPUT)
        if not self._step.parts:
            self.device.launched.remove(self._step)
        return nothing

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        return self._step

    def collective_rpc(
        self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None, non_block: bool = False, **_: Any
    ) -> Any:
        answers = [getattr(worker, method)(*args) for worker in self.workers] or [None]
        if not non_block:
            return answers
        told: Future[list[Any]] = Future()
        told.set_result(answers)
        return told

    def shutdown(self) -> None:
        pass
