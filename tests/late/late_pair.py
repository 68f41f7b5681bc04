"""Two late engines, the front end of their streams, and what is on its way between them.

Everything moves when the test says so. Every token that reaches a client is compared with the right one.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from functools import cache

import msgspec
from late_device import BLOCKS, chain, token_after
from late_engine import FRONT_END, LateCore
from late_wires import Wires
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.metrics.stats import PrefillStats

from llumnix.control import front_end_events as fe
from llumnix.control import ownership as own
from llumnix.control.messages import AnyNotice, Doubt
from llumnix.control.orders import MoveCause, MoveId, MoveOrder
from llumnix.control.stream import Stream
from llumnix.engine.vllm.between import NOTICE, RequestCodec, Resume
from llumnix.engine.vllm.instance.office import CONTROL, Tick
from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId, RequestId, Role
from llumnix.wire.to_instance import MoveOut, PullEnded
from llumnix.wire.to_scheduler import MoveAnswer

NAMES = ("i0", "i1")
ANY = Wanted()


@cache
def _cores(layout: str, drafts: bool) -> tuple[LateCore, LateCore]:
    first, second = (LateCore(name, index, layout, drafts) for index, name in enumerate(NAMES))
    return first, second


@dataclass(slots=True, eq=False)
class Session:
    request: EngineCoreRequest
    stream: Stream
    engine_id: str
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    prefill: PrefillStats | None = None
    """As the client's server is told of it."""
    replays: int = 0
    ended: bool = False

    def right_token(self) -> int:
        return next_token((self.request.prompt_token_ids or []) + self.tokens, self.cells)


def next_token(tokens: list[int], cells: list[int] | None = None) -> int:
    return token_after(chain(tokens, cells)[-1])


class LatePair:
    ONWARD = Wanted(to_decode=True)

    def __init__(self, layout: str = "full", drafts: bool = False, ranks: int = 1) -> None:
        """`ranks`: workers of each engine."""
        self.wires = Wires()
        self.cores = _cores(layout, drafts)
        for core in self.cores:
            core.begin(self.wires, ranks)
        self._by_name = dict(zip(NAMES, self.cores, strict=True))
        self._ownership = own.Ownership()
        self._unread: dict[str, deque[EngineCoreOutput]] = {name: deque() for name in NAMES}
        self.sessions: dict[str, Session] = {}
        """By engine id, those that have not ended."""
        self.wrong_tokens: list[str] = []
        self.wrong_prompts: list[str] = []
        self.moved = 0
        self._codec = RequestCodec()
        self._numbers = itertools.count()

    @property
    def wrong(self) -> list[str]:
        read_wrong = [fault for core in self.cores for fault in core.device.wrong]
        return self.wrong_tokens + self.wrong_prompts + read_wrong + self._given_back_early()

    def _given_back_early(self) -> list[str]:
        """Blocks that are free for others while a byte may still land in them."""
        pools = {id(core.device): core.scheduler.kv_cache_manager.block_pool for core in self.cores}
        return [
            f"block {ours} is free, and bytes are on their way there"
            for pull in self.wires.pulls + self.wires.late
            for _, ours in pull.left
            if not pools[id(pull.target)].blocks[ours].ref_cnt
        ]

    @property
    def leftovers(self) -> list[str]:
        return [found for core in self.cores if (found := core.leftovers())]

    # -- clients

    def ask(
        self,
        at: int,
        prompt: list[int],
        max_tokens: int,
        stops: tuple[int, ...] = (),
        priority: int = 0,
        onward: bool = False,
    ) -> Session:
        """`onward`: it is to go on at the other one with its first token."""
        name = f"r{next(self._numbers)}"
        if onward:
            self.cores[at].office.driver.role = Role.PREFILL
            self.move(at, name, self.ONWARD)
        request = EngineCoreRequest(
            request_id=name,
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=SamplingParams(
                max_tokens=max_tokens, temperature=0.0, ignore_eos=True, stop_token_ids=list(stops)
            ),
            pooling_params=None,
            arrival_time=float(len(name) * 1000 + next(self._numbers)),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            priority=priority,
        )
        session = Session(request, self._ownership.opened(RequestId(name), InstanceId(NAMES[at])), name)
        self.sessions[name] = session
        self.cores[at].add(request)
        return session

    def leave(self, session: Session) -> None:
        """The client goes away."""
        del self.sessions[session.engine_id]
        session.ended = True
        self._obey(self._ownership.aborted(RequestId(session.engine_id)))

    def move(self, source: int, request: str | None = None, wanted: Wanted = ANY) -> None:
        target = self.cores[1 - source]._info
        order = MoveOrder(
            move_id=MoveId(f"m{next(self._numbers)}"),
            target=target.id,
            cause=MoveCause.BY_HAND,
            reason="a test",
            request=None if request is None else RequestId(request),
            wanted=wanted,
        )
        self.cores[source].mail(MoveOut(order=order, target=target, reply_to=FRONT_END))

    def drive_out(self, session: Session) -> None:
        """It is replayed elsewhere."""
        self._obey(self._ownership.driven_out(RequestId(session.engine_id), "a test"))

    # -- things that happen

    def step(self, at: int) -> None:
        core = self.cores[at]
        if core.busy:
            core.step()
            self._listen(at)

    def device_runs(self, at: int) -> None:
        """A step is over before anybody asks."""
        if self.cores[at].device.launched:
            self.cores[at].device.run_next()

    def deliver(self, number: int = 0, in_step: bool = False) -> None:
        """`in_step`: to an engine that is in a step: its main thread looks at it afterwards."""
        if not self.wires.letters:
            return
        to, letter = self.wires.letters.pop(number % len(self.wires.letters))
        if to == FRONT_END:
            if isinstance(letter, Doubt):
                self._obey(self._ownership.doubted(letter))
            elif isinstance(letter, MoveAnswer):
                self.moved += letter.outcome.ok
        else:
            self._by_name[to].mail(letter, in_step)
        self._listen_all()

    def copy(self, blocks: int, number: int = 0) -> None:
        """A pull goes on."""
        if not self.wires.pulls:
            return
        pull = self.wires.pulls[number % len(self.wires.pulls)]
        pull.copy(blocks)
        if pull.over:
            self.wires.pulls.remove(pull)
            pull.end()
            if pull.quarantined:
                self.wires.late.append(pull)

    def hinder(self, number: int, *, breaks: bool, late: bool) -> None:
        """A pull: its connection `breaks`, and should it be given up, bytes may come `late`."""
        if self.wires.pulls:
            pull = self.wires.pulls[number % len(self.wires.pulls)]
            pull.late = late
            pull.why = pull.why or ("its connection broke" if breaks else "")

    def late_bytes_land(self, number: int = 0) -> None:
        """Of a pull that was given up. A worker's letters come in order: that of its end is there before."""
        ends = any(isinstance(letter, PullEnded) for _, letter in self.wires.letters)
        if self.wires.late and not ends:
            self.wires.late.pop(number % len(self.wires.late)).let_go()

    def fly(self) -> None:
        """All that is on its way arrives, before any engine makes a step."""
        while self.wires.letters or self.wires.pulls:
            self.deliver()
            self.copy(BLOCKS)

    def read(self, at: int) -> None:
        """The front end reads an output of an instance."""
        unread = self._unread[NAMES[at]]
        if not unread:
            return
        output = unread.popleft()
        notice = (output.kv_transfer_params or {}).get(NOTICE)
        if notice is not None:
            self._obey(self._ownership.notice_arrived(msgspec.msgpack.decode(notice, type=AnyNotice)))
            return
        session = self.sessions.get(output.request_id)
        if session is not None and session.stream.live == NAMES[at]:
            session.stream.delivered_tokens += len(output.new_token_ids)
            self._take(session, output)
        else:
            self._obey(
                self._ownership.outputs_arrived(
                    RequestId(output.request_id),
                    InstanceId(NAMES[at]),
                    (output,),
                    len(output.new_token_ids),
                    output.finish_reason is not None,
                )
            )

    def pass_time(self, seconds: float) -> None:
        self.wires.now_s += seconds
        for core in self.cores:
            if core.alarm is not None and core.alarm <= self.wires.now_s:
                core.alarm = None
                core.hear(CONTROL, Tick())
        self._listen_all()

    def settle(self) -> None:
        """Lets everything come to its end."""
        for turn in range(3000):
            if turn % 50 == 49:  # whoever waits for memory may wait for blocks where they are to land
                self.late_bytes_land()
            if not self.turn():
                if not self.sessions and not any(core.moving for core in self.cores):
                    return
                self.pass_time(1.0)
        raise AssertionError(f"no end: {sorted(self.sessions)}, {self.wires.letters}")

    def turn(self) -> bool:
        """One of everything, late bytes last of all; False when nothing is left to happen but time."""
        happens = bool(self.wires.letters or self.wires.pulls or any(self._unread.values()))
        happens |= any(core.busy for core in self.cores)
        self.copy(1)
        self.turn_but_for_pulls()
        if happens or not self.wires.late:
            return happens
        self.late_bytes_land()
        return True

    def turn_but_for_pulls(self) -> None:
        self.deliver()
        for at in range(2):
            self.read(at)
            self.step(at)

    # -- the front end

    def _listen_all(self) -> None:
        for at in range(2):
            self._listen(at)

    def _listen(self, at: int) -> None:
        for outputs in self.cores[at].said():
            self._unread[NAMES[at]].extend(outputs.outputs)

    def _take(self, session: Session, output: EngineCoreOutput) -> None:
        session.prefill = session.prefill or output.prefill_stats
        told = None if output.prefill_stats is None else output.prefill_stats.num_prompt_tokens
        if told != (None if session.tokens else len(session.request.prompt_token_ids or [])):
            self.wrong_prompts.append(f"{session.engine_id} at token {len(session.tokens)}: a prompt of {told}")
        for token in output.new_token_ids:
            right = session.right_token()
            if token != right:
                place = f"token {len(session.tokens)} of {session.engine_id}"
                self.wrong_tokens.append(f"{place} is {token}, not {right}")
            session.tokens.append(token)
        if output.finish_reason is not None:
            del self.sessions[session.engine_id]
            session.ended = True
            self._obey(self._ownership.finished(RequestId(session.engine_id)))

    def _obey(self, orders: list[own.Order]) -> None:
        for order in orders:
            match order:
                case fe.Deliver():
                    for output in order.outputs:
                        session = self.sessions.get(order.request)
                        if session is not None:
                            assert isinstance(output, EngineCoreOutput)
                            self._take(session, output)
                case fe.TellVerdict():
                    self.wires.post(order.to, order.verdict)
                case fe.Abort():
                    self._by_name[order.to].abort(order.request)
                case own.Replay():
                    self._replay(self.sessions.pop(order.stream.request))
        self._listen_all()

    def _replay(self, session: Session) -> None:
        at = 1 - NAMES.index(session.stream.owner)
        session.replays += 1
        session.engine_id = f"{session.request.request_id}~{session.replays}"
        session.stream = self._ownership.opened(RequestId(session.engine_id), InstanceId(NAMES[at]))
        session.stream.delivered_tokens = len(session.tokens)
        self.sessions[session.engine_id] = session
        renamed = msgspec.structs.replace(session.request, request_id=session.engine_id)
        core = self.cores[at]
        if not session.tokens:
            core.add(renamed)
            return
        resume = Resume(
            request_id=renamed.request_id,
            front_end=renamed.client_index,
            arrived_unix_s=renamed.arrival_time,
            request=[memoryview(frame) for frame in self._codec.encode(renamed)],
            output_token_ids=list(session.tokens),
        )
        core.llumnix_resume(msgspec.msgpack.encode(resume))
        core.read_mail()


def being_read(pair: LatePair) -> Session:
    """Blocks of a request are on their way from i0 to i1, to each worker there."""
    session = pair.ask(0, list(range(20)), 30)
    while pair.cores[0].scheduler.requests[session.engine_id].num_output_tokens < 2:
        pair.step(0)
    pair.move(0, session.engine_id)
    while not pair.wires.pulls:
        pair.turn_but_for_pulls()
    return session
