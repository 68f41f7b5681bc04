"""vLLM's body: its scheduler and its engine core, on a device that is late and knows right tokens."""

from __future__ import annotations

import itertools
from functools import cache
from unittest import mock

import msgspec
import pytest

pytest.importorskip("vllm")

from late_device import BLOCKS, chain, token_after
from late_engine import LateCore
from late_wires import Wires
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from body_contract import BodyContract, Commander
from llumnix.control.events import ReserveFailed
from llumnix.control.messages import AnyNotice
from llumnix.engine.vllm.between import NOTICE
from llumnix.engine.vllm.instance.early_pulls import NoAdapter, Refusal
from llumnix.engine.vllm.instance.office import CONTROL, Tick
from llumnix.types import Epoch, InstanceId, RequestId


@cache
def _cores() -> tuple[LateCore, LateCore]:
    return LateCore("i0", 0, layout="full"), LateCore("i1", 1, layout="full")


class LateEnd:
    def __init__(self, core: LateCore, wires: Wires, prompts: dict[RequestId, list[int]]) -> None:
        core.begin(wires)
        self.id = InstanceId(core._info.id)
        self.core = core
        self.commander = Commander()
        core.office.driver._loop.llumlet = self.commander  # type: ignore[assignment]
        self.words: list[tuple[RequestId, list[int]] | AnyNotice] = []
        self._prompts = prompts
        self._numbers = itertools.count()

    def listen(self) -> None:
        for outputs in self.core.said():
            for output in outputs.outputs:
                notice = (output.kv_transfer_params or {}).get(NOTICE)
                if notice is None:
                    self.words.append((RequestId(output.request_id), output.new_token_ids))
                else:
                    self.words.append(msgspec.msgpack.decode(notice, type=AnyNotice))

    @property
    def free_blocks(self) -> int:
        return self.core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def tick(self) -> None:
        self.core.hear(CONTROL, Tick())
        self.listen()

    def queue(self, tokens: int = 30) -> RequestId:
        number = next(self._numbers)
        name = RequestId(f"{self.id}-{number}")
        self._prompts[name] = list(range(number, number + 9))
        self.core.add(
            EngineCoreRequest(
                request_id=name,
                prompt_token_ids=list(self._prompts[name]),
                mm_features=None,
                sampling_params=SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True),
                pooling_params=None,
                arrival_time=float(number),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
        )
        return name

    def admit(self, tokens: int = 30) -> RequestId:
        name = self.queue(tokens)
        request = self.core.scheduler.requests[name]
        while not (request.num_output_tokens and request.num_in_flight_tokens):
            self.core.step()
        self.listen()
        return name

    def step(self) -> None:
        """Two are in flight at most."""
        for _ in range(4):
            if self.core.busy:
                self.core.step()
        self.listen()

    def abort(self, request: RequestId) -> None:
        self.core.abort(request)
        while self.core.busy:
            self.core.step()
        self.listen()

    def preempt(self, request: RequestId) -> None:
        assert self.core.scheduler.reset_prefix_cache(reset_running_requests=True)

    def tokens(self, request: RequestId) -> int:
        return sum(len(word[1]) for word in self.words if isinstance(word, tuple) and word[0] == request)

    def tokens_before(self, notice: type[AnyNotice]) -> int | None:
        said = 0
        for word in self.words:
            if isinstance(word, notice):
                return said
            said += len(word[1]) if isinstance(word, tuple) else 0
        return None


class LateBodies:
    def __init__(self) -> None:
        self._wires = Wires()
        self._prompts: dict[RequestId, list[int]] = {}
        self.source, self.target = (LateEnd(core, self._wires, self._prompts) for core in _cores())
        self._ends = {self.source.id: self.source, self.target.id: self.target}
        for end in self._ends.values():
            self.source.core.office.driver._body.letters.met(end.core._info)

    def deliver(self) -> None:
        letters, self._wires.letters[:] = list(self._wires.letters), []
        for to, letter in letters:
            self._ends[InstanceId(to)].core.mail(letter)

    def end_copies(self) -> None:
        pulls, self._wires.pulls[:] = list(self._wires.pulls), []
        for pull in pulls:
            pull.copy(BLOCKS)
            pull.end()
        self.deliver()

    def lose_source(self) -> None:
        self.target.core.office.driver.peer_lost(self.source.id)

    def pass_time(self, seconds: float) -> None:
        self._wires.now_s += seconds
        for end in self._ends.values():
            if end.core.alarm is not None and end.core.alarm <= self._wires.now_s:
                end.core.alarm = None
                end.tick()

    @property
    def wrong(self) -> list[str]:
        wrong = [fault for end in self._ends.values() for fault in end.core.device.wrong]
        for name, prompt in self._prompts.items():
            tokens = list(prompt)
            for word in [*self.source.words, *self.target.words]:
                for token in word[1] if isinstance(word, tuple) and word[0] == name else []:
                    if token != (right := token_after(chain(tokens)[-1])):
                        wrong.append(f"token {len(tokens) - len(prompt)} of {name} is {token}, not {right}")
                    tokens.append(token)
        return wrong


class TestVllmBody(BodyContract):
    @pytest.fixture
    def pair(self) -> LateBodies:
        return LateBodies()


def test_transports_of_workers_forget_a_peer_that_is_gone() -> None:
    pair = LateBodies()
    pair.target.core.office.driver._body.letters.met(pair.source.core._info)
    pair.lose_source()
    pair.lose_source()
    assert pair._wires.forgotten == [(pair.target.id, pair.source.id)]


@pytest.mark.parametrize(("refusal", "for_adapter"), [(NoAdapter("no place"), True), (Refusal("no room"), False)])
def test_target_says_whether_but_the_adapter_is_in_the_way(
    refusal: Refusal, for_adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = LateBodies()
    pair.target.core.office.driver._body.letters.met(pair.source.core._info)
    body = pair.target.core.office.driver._body
    monkeypatch.setattr(body.incoming, "reserve", mock.Mock(side_effect=refusal))
    body._prepared[RequestId("r"), Epoch(1)] = mock.Mock()
    message = mock.Mock(sender=pair.source.id, to_decode=False)
    failed = body.reserve(mock.Mock(request=RequestId("r"), epoch=Epoch(1), blocks=1, message=message))
    assert isinstance(failed, ReserveFailed)
    assert (failed.reason, failed.for_adapter) == (str(refusal), for_adapter)
