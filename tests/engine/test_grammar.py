"""A grammar that begins where the reasoning ends is brought to where the output stands, at the target of a move and
after the death of its instance. vLLM's own walk, a toy grammar and a toy reasoning parser."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from llumnix.engine.vllm.between import RequestCodec
from llumnix.engine.vllm.instance.arriving_blocks import Reservation
from llumnix.engine.vllm.instance.early_pulls import Origin, Refusal
from llumnix.engine.vllm.instance.grammar import follow
from llumnix.engine.vllm.instance.incoming import IncomingRequests
from llumnix.engine.vllm.instance.making import Maker
from llumnix.engine.vllm.instance.state import Hand, stamp
from llumnix.types import InstanceId, RequestId

END = 99
OUTPUT = [50, 51, END, 3, 1, 4, 1]


class Digits:
    """Accepts tokens below 10, and keeps them."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def accept_tokens(self, request_id: str, token_ids: list[int]) -> bool:
        self.accepted += token_ids
        return all(token < 10 for token in token_ids)


class Reasoner:
    """Ends at the first `END`, which later is a token like others."""

    def __init__(self, tokenizer: object) -> None: ...

    def is_reasoning_end(self, input_ids: list[int]) -> bool:
        return END in input_ids

    def is_reasoning_end_streaming(self, input_ids: list[int], delta_ids: list[int]) -> bool:
        return END in delta_ids


def manager(reasoner: type | None = Reasoner) -> StructuredOutputManager:
    made = StructuredOutputManager.__new__(StructuredOutputManager)
    made.enable_in_reasoning, made.reasoner_cls, made.tokenizer = False, reasoner, None
    return made


def request(**fields: Any) -> tuple[Request, Digits]:
    sampling = SamplingParams(structured_outputs=StructuredOutputsParams(regex="[0-9]*"))
    original = engine_request("r", sampling_params=sampling, **fields)
    made, grammar = Request.from_engine_core_request(original, None), Digits()
    stamp(made, original)
    assert made.structured_output_request is not None
    made.structured_output_request.grammar = grammar  # type: ignore[assignment]
    return made, grammar


def at_the_source(output: list[int], structured_output: StructuredOutputManager) -> tuple[list[int], bool | None]:
    """What the grammar saw, step by step, and whether the reasoning has ended."""
    made, grammar = request()
    for token in output:
        made.append_output_token_ids([token])
        assert structured_output.accept_tokens(made, [token])
    assert made.structured_output_request is not None
    return grammar.accepted, made.structured_output_request.reasoning_ended


@pytest.mark.parametrize("tokens", range(len(OUTPUT) + 1))
@pytest.mark.parametrize("with_prepare", range(len(OUTPUT) + 1))
def test_move_at_any_token(tokens: int, with_prepare: int) -> None:
    """`with_prepare` of them were known when the target was asked, the others come with the last blocks."""
    if with_prepare > tokens:
        return
    output = OUTPUT[:tokens]
    seen, ended = at_the_source(output, manager())
    made, grammar = request()
    assert follow(made, manager(), output[:with_prepare])
    install(made, output, ended)
    assert grammar.accepted == seen
    assert list(made.output_token_ids) == output


def install(made: Request, output: list[int], reasoning_ended: bool | None) -> None:
    scheduler = SimpleNamespace(
        log_stats=False,
        grow=lambda *_: True,
        adopt=lambda *_: None,
        spare_tokens=16,
        use_v2_model_runner=True,
    )
    incoming = IncomingRequests(scheduler, manager(), SimpleNamespace(order=None), lambda _: True)  # type: ignore[arg-type]
    key = RequestId("r"), 1
    incoming._reservations[key] = Reservation(made, False, Origin(InstanceId("i0"), (), 5.0))
    fixed: dict[str, Any] = {
        "computed_tokens": 3, "preemptions": 0, "preempted_s": None, "robbed_s": None, "cached_tokens": 0,
        "migrations": 1, "sampler_state": None
    }  # fmt: skip
    incoming.install(key, Hand(output_token_ids=output, reasoning_ended=reasoning_ended, **fixed), 0.0)


def test_reasoning_that_ends_elsewhere_here_is_refused() -> None:
    made, _ = request()
    with pytest.raises(Refusal, match="its reasoning ends elsewhere here"):
        install(made, OUTPUT[:2], True)


def test_output_that_the_grammar_does_not_accept_is_refused() -> None:
    made, _ = request()
    with pytest.raises(Refusal, match="does not accept its own output"):
        install(made, [END, 3, 50], True)


def made_of(output: list[int], grammar: Any) -> list[Request | str]:
    """What comes of a request with such an output and grammar, told by the time that it is compiled."""
    made, _ = request()
    assert made.structured_output_request is not None
    compiling: Future[Any] = Future()
    made.structured_output_request._grammar = compiling
    told: list[Request | str] = []
    Maker(lambda _original: made, manager()).start(RequestCodec().encode(engine_request("r")), output, told.append)
    assert told == []
    if isinstance(grammar, Exception):
        compiling.set_exception(grammar)
    else:
        compiling.set_result(grammar)
    return told


def test_refusal_of_the_output_that_came_with_the_question_costs_no_copy() -> None:
    assert made_of([END, 3, 50], Digits()) == ["its grammar does not accept its own output here"]


def test_request_is_brought_to_where_its_output_stands_once_its_grammar_is_compiled() -> None:
    grammar = Digits()
    (made,) = made_of([END, 3, 5], grammar)
    assert isinstance(made, Request)
    assert (list(made.output_token_ids), grammar.accepted) == ([END, 3, 5], [3, 5])


def test_grammar_that_does_not_compile_or_breaks_is_told() -> None:
    assert made_of([], ValueError("not a regex")) == ["its grammar does not compile here: not a regex"]
    broken = SimpleNamespace(accept_tokens=1)
    assert made_of([END, 3], broken) == ["its grammar fails here: 'int' object is not callable"]


def test_what_cannot_be_made_is_told() -> None:
    told: list[Request | str] = []
    maker = Maker(lambda _original: pytest.fail("there is nothing to make it of"), manager())
    maker.start((b"\xc1",), [], told.append)
    assert [str(each).startswith("it cannot be made here: ") for each in told] == [True]


def test_request_that_came_with_its_reasoning_ended() -> None:
    made, grammar = request(reasoning_ended=True)
    assert follow(made, manager(), [1, 2])
    assert grammar.accepted == [1, 2]


def test_without_a_reasoning_parser_the_whole_output_counts() -> None:
    made, grammar = request()
    assert follow(made, manager(None), [1, 2, 3])
    assert grammar.accepted == [1, 2, 3]
