"""What a front end writes down of its traffic (`--record`): here it is picked up, on the event loop; hashed and written
it is in a thread (`record/writer.py`)."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from time import monotonic, time
from typing import Any

import msgspec
import vllm

import llumnix
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.between import names_beginning, reads_cache, salt_of_request
from llumnix.engine.vllm.front_end.loud_tasks import LoudTasks
from llumnix.engine.vllm.front_end.members import Members, Strangers
from llumnix.engine.vllm.front_end.recorded_rows import request_row, step_row, stranger_row
from llumnix.engine.vllm.front_end.run_in_force import RunFile, RunInForce
from llumnix.engine.vllm.front_end.session import Session
from llumnix.policy.snapshot import StepCost
from llumnix.record.form import FALLBACK_UNIT_TOKENS, About, Limits, RecordedMove
from llumnix.record.runs import make_room
from llumnix.record.writer import EndedRow, Looked, RunWriter, Tried
from llumnix.report.records import MigrationRecord, instance_record
from llumnix.types import InstanceId, InstanceState

_LOOK_S = 1.0
_LOOKER = 0
"""The front end that writes down the instances, which all of them see alike, and makes room for new runs."""


def make_recorder(
    spec: FrontEndSpec, members: Members, strangers: Strangers, args: argparse.Namespace, config: Any
) -> Recorder | None:
    """None without `--record`. `args`: flags of `vllm serve`; `config`: the VllmConfig."""
    if not spec.cluster.record:
        return None
    scheduling = config.scheduler_config
    about = About(
        began_at_s=0.0,
        llumnix=llumnix.__version__,
        engine=f"vllm {vllm.__version__}",
        model=args.served_model_name[0] if args.served_model_name else args.model,
        front_ends=spec.book.front_ends,
        policy=spec.policy,
        migration=spec.migration,
        limits=Limits(
            max_num_seqs=scheduling.max_num_seqs,
            max_num_batched_tokens=scheduling.max_num_batched_tokens,
            prefix_caching=bool(config.cache_config.enable_prefix_caching),
            priorities=scheduling.policy == "priority",
        ),
        block_tokens=config.cache_config.block_size,
        state_blocks=0,
        classes=spec.classes is not None,
        front_end=spec.index,
        since_s=0.0,
    )
    return Recorder(spec, members, strangers, about)


class Recorder:
    """Of one front end. Streams tell it what happens to them, and `run` looks at the instances."""

    def __init__(self, spec: FrontEndSpec, members: Members, strangers: Strangers, about: About) -> None:
        """`about`: as far as it is the same for every run."""
        self._spec = spec
        self._members = members
        self._strangers = strangers
        self._about = about
        self._key = blake2b(spec.secret, person=b"recorded run").digest()
        self._file = RunFile(spec.book.run_dir)
        self._writer: RunWriter | None = None
        self._in_force = RunInForce()
        self._costs: dict[InstanceId, StepCost] = {}
        self._there: set[InstanceId] = set()
        self._beside = LoudTasks()

    @property
    def folder(self) -> Path:
        """Of the run that is being recorded; of all runs if none is."""
        return Path(self._in_force.folder or self._spec.cluster.record).absolute()

    # -- on and off

    def begin(self) -> None:
        """With the server, or when this front end is restarted; instances serve already."""
        self._take_up(self._file.begin(self._fresh()))

    def switch(self, on: bool) -> str:
        """Of all front ends, which are to `follow`. Whoever begins anew begins another run: of what was between,
        nobody knows. Returns the folder, or an empty string."""
        run = self._file.read()
        if on != bool(run.folder):
            self._file.write(self._fresh() if on else RunInForce())
        self.follow()
        return self._in_force.folder

    def follow(self) -> None:
        self._take_up(self._file.read())

    def _fresh(self) -> RunInForce:
        now_s = time()
        name = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")[:-3]
        folder = Path(self._spec.cluster.record).absolute() / name
        return RunInForce(str(folder), now_s, monotonic(), self._unit_tokens())

    def _take_up(self, run: RunInForce) -> None:
        if run == self._in_force:
            return
        self._in_force = run
        before, self._writer = self._writer, None
        if before is not None:
            self._in_thread(before.close)
        if run.folder:
            self._writer = self._write_to(run)
            self._costs.clear()
            if self._spec.index == _LOOKER:
                cluster, folder = self._spec.cluster, Path(run.folder)
                others_bytes = (cluster.record_keep_mb - cluster.record_mb) << 20  # this one may get that large
                self._in_thread(make_room, folder.parent, others_bytes, folder)

    def _in_thread(self, work: Callable[..., None], *of: object) -> None:
        self._beside.spawn(asyncio.to_thread(work, *of))

    def _write_to(self, run: RunInForce) -> RunWriter:
        cluster, book = self._spec.cluster, self._spec.book
        about = msgspec.structs.replace(
            self._about, began_at_s=run.began_at_s, since_s=max(0.0, self._run_s(monotonic()))
        )
        for member in self._members.by_id.values():  # all have the same
            load = member.snapshot
            about = msgspec.structs.replace(about, block_tokens=load.block_tokens, state_blocks=load.state_blocks)
        most_bytes = (cluster.record_mb << 20) // book.front_ends
        return RunWriter(Path(run.folder), about, run.unit_tokens, self._key, most_bytes)

    def _unit_tokens(self) -> int:
        """By which instances tell the beginnings of prompts apart."""
        if not self._about.limits.prefix_caching:
            return 0
        told = (member.snapshot.prefix_chunk_tokens for member in self._members.by_id.values())
        return max(told, default=0) or FALLBACK_UNIT_TOKENS

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    # -- what streams tell

    def ended(self, session: Session) -> None:
        if self._writer is None:
            return
        request = session.request
        has_name = session.keeps_media and names_beginning(request) and reads_cache(request)
        tokens = (request.prompt_token_ids or ()) if has_name else ()
        row = request_row(session, self._run_s(session.story.arrived_s))
        self._writer.put(EndedRow(row, tokens, salt_of_request(request)))

    def tried(self, session: Session, move: MigrationRecord) -> None:
        if self._writer is None:
            return
        named = msgspec.structs.asdict(move) | {"request_id": session.story.sequence}
        named["at_s"] = self._run_s(monotonic() - (time() - move.at_s))
        tokens = session.story.prompt_tokens + len(session.tokens)
        self._writer.put(Tried(RecordedMove(**named, tokens=tokens)))

    def _run_s(self, monotonic_s: float) -> float:
        return monotonic_s - self._in_force.began_s

    # -- what instances report

    async def run(self) -> None:
        """Until the server ends."""
        self.begin()
        if self._spec.index != _LOOKER:
            return
        while True:
            if self._writer is not None:
                self._writer.put(self._look(self._run_s(monotonic())))
            await asyncio.sleep(_LOOK_S)

    def _look(self, at_s: float) -> Looked:
        members, strangers = self._members, self._strangers
        loads = {name: member.snapshot for name, member in members.by_id.items()}
        rows = [instance_record(at_s, load) for load in loads.values()]
        rows += [
            stranger_row(at_s, name, InstanceState.STARTING) for name in sorted({*strangers.starting, *members.courted})
        ]
        states = {gone.instance: state for gone, state in strangers.gone}
        gone = self._there - loads.keys()
        rows += [stranger_row(at_s, name, states.get(name, InstanceState.STOPPED)) for name in sorted(gone)]
        self._there = set(loads)
        costs = {name: load.step_cost for name, load in loads.items() if load.step_cost is not None}
        anew = {name: cost for name, cost in costs.items() if self._costs.get(name) != cost}
        self._costs = costs
        return Looked(rows, [step_row(at_s, loads[name], cost) for name, cost in anew.items()])
