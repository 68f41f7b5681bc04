"""Requests with images or with a prompt given as embeddings: on their way between instances, and kept for a replay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from engine_requests import PIXELS, engine_request, picture
from test_streams import MOST_MEDIA_BYTES, FrontEnd, _token
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request

from llumnix.control import commands
from llumnix.control.messages import Prepare
from llumnix.engine.vllm.between import RequestCodec
from llumnix.engine.vllm.front_end.session import media_bytes
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.engine.vllm.instance.incoming import for_worker
from llumnix.engine.vllm.instance.letters import Letters
from llumnix.engine.vllm.instance.making import Maker
from llumnix.engine.vllm.instance.media import announce
from llumnix.engine.vllm.instance.state import decode_identity, stamp
from llumnix.engine.vllm.instance.worker import WorkerExtension
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.wire.base import InstanceInfo

EMBEDS = torch.arange(300, dtype=torch.float32).reshape(3, 100)


def given_as_embeddings(**fields: Any) -> dict[str, Any]:
    return {"prompt_token_ids": None, "prompt_embeds": EMBEDS, **fields}


def pixels_of(request: EngineCoreRequest | Request) -> torch.Tensor:
    assert request.mm_features
    (feature,) = request.mm_features
    assert feature.data is not None
    pixels = feature.data["pixel_values"].data
    assert isinstance(pixels, torch.Tensor)
    return pixels


# -- on the way


def test_tensors_are_frames_of_their_own_and_come_out_the_same() -> None:
    codec = RequestCodec()
    frames = codec.encode(engine_request("r", mm_features=[picture()], **given_as_embeddings(prompt_token_ids=None)))
    assert len(frames) == 3
    assert len(frames[0]) < PIXELS.nbytes
    decoded = codec.decode([bytes(frame) for frame in frames])  # as they come out of a message
    assert torch.equal(pixels_of(decoded), PIXELS)
    assert decoded.prompt_embeds is not None
    assert torch.equal(decoded.prompt_embeds, EMBEDS)


def test_prepare_takes_pixels_beside_it_and_the_target_makes_the_same_request() -> None:
    original = engine_request("r", mm_features=[picture()])
    request = Request.from_engine_core_request(original, None)
    stamp(request, original)
    shipped: list[Any] = []
    letters = _letters(request, ship=lambda _address, letter, freight: shipped.append((letter.message, freight)))
    letters.send(commands.Send(InstanceId("i1"), _prepare("r")))
    ((message, freight),) = shipped
    assert len(message.payload) < PIXELS.nbytes
    identity = decode_identity(message.payload)
    made: list[Request | str] = []
    maker = Maker(lambda asked: Request.from_engine_core_request(asked, None), SimpleNamespace())
    maker.start((identity.request, *freight), [], made.append)
    (there,) = made
    assert isinstance(there, Request)
    assert torch.equal(pixels_of(there), PIXELS)
    maker.start((identity.request,), [], made.append)
    assert "cannot be made here" in str(made[1]), "its pixels were lost on the way"


def test_prepare_of_tokens_alone_is_no_freight() -> None:
    original = engine_request("r")
    request = Request.from_engine_core_request(original, None)
    stamp(request, original)
    posted: list[Any] = []
    _letters(request, post_soon=lambda _addresses, letter: posted.append(letter.message)).send(
        commands.Send(InstanceId("i1"), _prepare("r"))
    )
    assert [decode_identity(message.payload).output_token_ids for message in posted] == [[]]


def _prepare(name: str) -> Prepare:
    return Prepare(request=RequestId(name), epoch=Epoch(1), sender=InstanceId("i0"), blocks=1)


def _letters(request: Request, **ways: Any) -> Letters:
    names = ("structured_output", "workers", "post", "post_soon", "ship", "forget", "put_output", "wake_at", "clock")
    engine: Any = dict.fromkeys((*names, "has_adapter", "book")) | {"pins": ""}
    del engine["book"]
    scheduler: Any = SimpleNamespace(requests={request.request_id: request}, max_model_len=64)
    i0, i1 = (
        InstanceInfo(id=InstanceId(name), index=n, slot=n, pid=1, node="", control=name, data="")
        for n, name in enumerate(("i0", "i1"))
    )
    letters = Letters(EngineAccess(**engine | ways, info=i0, scheduler=scheduler), book=None)  # type: ignore[arg-type]
    letters.met(i1)
    return letters


# -- at the workers of the target


class Runner:
    """What is used of vLLM's V1 runner."""

    kv_cache_config = SimpleNamespace(kv_cache_groups=[None])

    def __init__(self, uses_mrope: bool) -> None:
        self.uses_mrope = uses_mrope
        self.requests: dict[str, Any] = {}

    def _init_mrope_positions(self, state: Any) -> None:
        state.mrope_position_delta = len(state.mm_features)


def _worker(uses_mrope: bool = False) -> tuple[WorkerExtension, Any]:
    worker = WorkerExtension()
    worker._llumnix_media = {}
    worker.device = torch.device("cpu")
    worker.model_runner = Runner(uses_mrope)

    return worker, SimpleNamespace(tell=lambda method, *arguments: getattr(worker, method)(*arguments))


def _at_the_target(**fields: Any) -> Request:
    request = Request.from_engine_core_request(
        engine_request("r", sampling_params=SamplingParams(max_tokens=9), **fields), None
    )
    request.append_output_token_ids([7, 8])
    return request


@pytest.mark.parametrize("uses_mrope", [False, True])
def test_v1_runner_knows_images_and_where_they_are(uses_mrope: bool) -> None:
    worker, workers = _worker(uses_mrope)
    request = _at_the_target(mm_features=[picture()])
    announce(request, SimpleNamespace(use_v2_model_runner=False), workers)  # type: ignore[arg-type]
    workers.tell("llumnix_install", for_worker(request, 4))
    state = worker.model_runner.requests["r"]
    assert state.mm_features == request.mm_features
    assert state.mrope_position_delta == (1 if uses_mrope else None)
    assert worker._llumnix_media == {}


def test_v1_runner_knows_a_prompt_given_as_embeddings() -> None:
    worker, workers = _worker()
    request = _at_the_target(**given_as_embeddings())
    announce(request, SimpleNamespace(use_v2_model_runner=False), workers)  # type: ignore[arg-type]
    workers.tell("llumnix_install", for_worker(request, 4))
    state = worker.model_runner.requests["r"]
    assert state.prompt_embeds is EMBEDS
    assert state.num_prompt_tokens == 3


def test_v2_runner_is_told_by_the_scheduler_and_nothing_is_sent_twice() -> None:
    worker, workers = _worker()
    announce(_at_the_target(mm_features=[picture()]), SimpleNamespace(use_v2_model_runner=True), workers)  # type: ignore[arg-type]
    assert worker._llumnix_media == {}


def test_one_that_does_not_come_after_all_is_forgotten() -> None:
    worker, workers = _worker()
    request = _at_the_target(mm_features=[picture()])
    announce(request, SimpleNamespace(use_v2_model_runner=False), workers)  # type: ignore[arg-type]
    assert list(worker._llumnix_media) == ["r"]
    workers.tell("llumnix_forget", "r")
    assert worker._llumnix_media == {}


# -- at the front end


def test_size_is_that_of_all_tensors() -> None:
    assert media_bytes(engine_request("r")) == 0
    pair = picture([PIXELS, PIXELS])  # type: ignore[arg-type]
    assert media_bytes(engine_request("r", mm_features=[picture(), pair])) == 3 * PIXELS.nbytes
    assert media_bytes(engine_request("r", **given_as_embeddings())) == EMBEDS.nbytes


def test_stream_with_an_image_goes_on_elsewhere_with_it() -> None:
    front = FrontEnd(InstanceId("a"), InstanceId("b"))
    first = front.open(mm_features=[picture()])
    front.streams.sort_out(first, [_token("r", 7)])
    front.lose(first)
    ((_, resume),) = front.resumed
    assert torch.equal(pixels_of(RequestCodec().decode(resume.request)), PIXELS)
    assert resume.output_token_ids == [7]


def test_stream_whose_images_are_not_kept_says_so_when_its_instance_dies() -> None:
    front = FrontEnd(InstanceId("a"), InstanceId("b"))
    first = front.open(mm_features=[picture(torch.zeros(MOST_MEDIA_BYTES))])
    front.streams.sort_out(first, [_token("r", 7)])
    (session,) = front.streams.sessions.values()
    assert session.request.mm_features is None, "they are let go of with the first token"
    front.lose(first)
    (why,) = front.why_failed
    assert "--kept-media-mb" in why


def test_before_its_first_token_it_is_sent_again_all_the_same() -> None:
    front = FrontEnd(InstanceId("a"), InstanceId("b"))
    first = front.open(mm_features=[picture(torch.zeros(MOST_MEDIA_BYTES))])
    front.lose(first)
    ((_, _, renamed),) = front.sent
    assert pixels_of(renamed).numel() == MOST_MEDIA_BYTES


@pytest.mark.parametrize("end", ["token", "abort", "unsent"])
def test_room_for_images_comes_back_when_a_stream_ends(end: str) -> None:
    front = FrontEnd(InstanceId("a"))
    at = front.open(mm_features=[picture()])
    kept = front.streams._kept
    assert kept.bytes == PIXELS.nbytes
    match end:
        case "token":
            front.streams.sort_out(at, [_token("r", 7, finish_reason=0)])
        case "abort":
            front.streams.abort("r")
        case _:
            front.streams.unsent("r")
    assert kept.bytes == 0


def test_room_for_images_comes_back_when_a_replayed_stream_ends() -> None:
    front = FrontEnd(InstanceId("a"), InstanceId("b"))
    first = front.open(mm_features=[picture()])
    front.streams.sort_out(first, [_token("r", 7)])
    front.lose(first)
    ((second, _),) = front.resumed
    front.streams.sort_out(second, [_token("r~1", 8, finish_reason=0)])
    assert (front.streams.sessions, front.streams._kept.bytes) == ({}, 0)
