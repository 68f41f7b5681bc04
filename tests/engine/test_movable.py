"""Engines that move nothing say why, and serve all the same."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("vllm")

import torch
from engine_requests import PICTURE
from vllm.config import MultiModalConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    CircularBufferSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.request import Request

from llumnix import tiny_model
from llumnix.engine.vllm.instance.movable import why_engine_pins, why_request_pinned
from llumnix.engine.vllm.instance.worker import WorkerExtension
from llumnix.types import RequestId
from llumnix.wire.addresses import AddressBook
from llumnix.wire.to_worker import CancelPulls, ForgetPeer

FULL = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32)
SHORT = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
SLIDING = SlidingWindowSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32, sliding_window=64)
CHUNKED = ChunkedLocalAttentionSpec(
    block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32, attention_chunk_size=64
)
LATENT = MLAAttentionSpec(block_size=256, num_kv_heads=1, head_size=512, dtype=torch.bfloat16)
COMPRESSOR = SlidingWindowMLASpec(
    block_size=4, num_kv_heads=1, head_size=512, dtype=torch.float32, sliding_window=8, alignment=512
)
RING = CircularBufferSpec(block_size=16, num_kv_heads=1, head_size=64, dtype=torch.float32)
MAMBA = MambaSpec(block_size=16, shapes=((2, 2),), dtypes=(torch.float32,))
MAMBA_OF_DRAFTS = replace(MAMBA, num_speculative_blocks=2)


def _wrapped(*specs: Any) -> UniformTypeKVCacheSpecs:
    """Layers of one type and different sizes."""
    return UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs={f"layer {n}": spec for n, spec in enumerate(specs)})


@cache
def _config() -> VllmConfig:
    return EngineArgs(model=str(tiny_model.ensure()), enforce_eager=True, max_model_len=64).create_engine_config()


def _caches(*specs: Any) -> KVCacheConfig:
    return KVCacheConfig(64, [], [KVCacheGroupSpec([f"layer {n}"], spec) for n, spec in enumerate(specs)])


@pytest.mark.parametrize(
    "specs",
    [
        (FULL,),
        (SLIDING,),
        (FULL, SLIDING),
        (CHUNKED, FULL),
        (FULL, SHORT),
        (_wrapped(FULL, replace(FULL, head_size=32)),),
        (LATENT, COMPRESSOR),
    ],
    ids=["full", "window", "both", "chunks", "two precisions", "layers of two sizes", "compressed"],
)
def test_what_tokens_are_appended_to_moves(specs: tuple[Any, ...]) -> None:
    assert why_engine_pins(_config(), _caches(*specs)) == ""


@pytest.mark.parametrize(
    "specs", [(FULL, MAMBA), (MAMBA,), (FULL, replace(MAMBA, mamba_cache_mode="align")), (FULL, MAMBA_OF_DRAFTS)]
)
def test_state_that_is_overwritten_moves(specs: tuple[Any, ...]) -> None:
    assert why_engine_pins(_config(), _caches(*specs)) == ""


@pytest.mark.parametrize("v2", [True, False])
def test_state_after_drafts_stays_where_no_step_can_be_had_without_them(v2: bool) -> None:
    config = copy(_config())
    config.scheduler_config = _With(config.scheduler_config, "async_scheduling", True)  # type: ignore[assignment]
    with patch.object(VllmConfig, "use_v2_model_runner", v2):
        why = why_engine_pins(config, _caches(FULL, MAMBA_OF_DRAFTS))
    assert ("a step without drafts" in why) == (not v2)
    assert why_engine_pins(config, _caches(FULL, MAMBA)) == ""


@pytest.mark.parametrize(
    ("caches", "why"),
    [
        ((), "no KV cache"),
        ((FULL, replace(MAMBA, mamba_cache_mode="all")), "state of kind MambaSpec"),
        ((FULL, replace(MAMBA_OF_DRAFTS, mamba_cache_mode="align")), "with prefix caching, states after drafts"),
        ((FULL, RING), "state of kind CircularBufferSpec"),
        ((_wrapped(FULL, RING),), "state of kind CircularBufferSpec"),
    ],
)
def test_caches_that_cannot_be_copied_pin_their_engine(caches: tuple[Any, ...], why: str) -> None:
    assert why in why_engine_pins(_config(), _caches(*caches))


@pytest.mark.parametrize(
    ("part", "field", "value", "why"),
    [
        ("parallel_config", "decode_context_parallel_size", 2, "context parallelism"),
        ("parallel_config", "prefill_context_parallel_size", 2, "context parallelism"),
        ("parallel_config", "data_parallel_size", 2, "data parallel"),
        (None, "speculative_config", SimpleNamespace(method="custom_class"), "its drafter may keep a state"),
        (None, "speculative_config", SimpleNamespace(method="extract_hidden_states"), "its drafter may keep a state"),
        (None, "kv_transfer_config", object(), "KV connector"),
        (None, "ec_transfer_config", object(), "outputs of the encoder"),
        (None, "aux_output_config", SimpleNamespace(enabled=True), "auxiliary output"),
        ("model_config", "is_encoder_decoder", True, "encoder-decoder"),
        ("model_config", "multimodal_config", MultiModalConfig(video_pruning_rate=0.5), "video pruning"),
        ("model_config", "runner_type", "pooling", "pooling models"),
        ("model_config", "enable_sleep_mode", True, "sleep mode"),
        ("cache_config", "use_replayssm", True, "ReplaySSM"),
        ("attention_config", "hisparse_config", object(), "HiSparse"),
    ],
)
def test_ways_to_run_that_are_not_safe_pin_their_engine(part: str | None, field: str, value: object, why: str) -> None:
    """`part`: of the configuration, if it is not a field of the whole."""
    config = copy(_config())
    if part is not None:
        setattr(config, part, _With(getattr(config, part), field, value))
    else:
        setattr(config, field, value)
    assert why in why_engine_pins(config, _caches(FULL))


@pytest.mark.parametrize("method", ["ngram", "ngram_gpu", "suffix", "medusa", "draft_model", "eagle", "eagle3", "mtp"])
def test_engines_with_drafts_that_can_be_dropped_move(method: str) -> None:
    config = copy(_config())
    config.speculative_config = SimpleNamespace(method=method)  # type: ignore[assignment]
    assert why_engine_pins(config, _caches(FULL)) == ""


def test_requests_whose_seed_draws_by_their_drafts_stay() -> None:
    def sampled(**params: Any) -> Request:
        return Request("r", [1, 2, 3], SamplingParams(max_tokens=4, **params), None)

    assert "its drafts" in why_request_pinned(sampled(seed=1, temperature=1.0), drafts=True)
    assert why_request_pinned(sampled(seed=1, temperature=1.0), drafts=False) == ""
    assert why_request_pinned(sampled(seed=1, temperature=0.0), drafts=True) == ""
    assert why_request_pinned(sampled(temperature=1.0), drafts=True) == ""


class _With:
    """As it is, but for one field, which may be a property there."""

    def __init__(self, part: Any, field: str, value: object) -> None:
        self._part = part
        setattr(self, field, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def _request(**fields: Any) -> Request:
    return Request("r", [1, 2, 3], SamplingParams(max_tokens=4), None, **fields)


def _for_a_connector() -> Request:
    """That its engine does not have."""
    asked = {"kv_transfer_params": {}, "ec_transfer_params": {"a": 1}}
    request = Request("r", [1, 2, 3], SamplingParams(max_tokens=4, extra_args=asked), None)
    assert request.kv_transfer_params is not None
    assert request.ec_transfer_params is not None
    return request


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (_request(), ""),
        (_request(mm_features=[PICTURE]), ""),
        (_for_a_connector(), ""),
        (Request("r", None, SamplingParams(max_tokens=4), None, prompt_embeds=torch.zeros(3, 4)), ""),
        (Request("r", [1], None, PoolingParams()), "pooling request"),
        (_request(resumable=True), "streaming input session"),
        (Request("r", [1, 2, 3], SamplingParams(max_tokens=4, prompt_logprobs=1), None), ""),
    ],
)
def test_requests_that_cannot_move_say_why(request_: Request, why: str) -> None:
    found = why_request_pinned(request_, drafts=False)
    assert bool(found) == bool(why)
    assert why in found


def test_worker_without_a_cache_opens_no_transport() -> None:
    class Worker(WorkerExtension):
        model_runner = SimpleNamespace(kv_caches=[], kv_cache_config=SimpleNamespace(num_blocks=1))
        device = torch.device("cuda")  # nothing is allocated there
        rank = 0

    worker = Worker()
    book = AddressBook(run_dir="", launcher="", scheduler="", fronts=())
    assert worker.llumnix_open(book, "nobody", b"", moves=False, ways=[], max_incoming=1) == ""
    assert worker.llumnix_listen() == "", "it is in this process"
    worker.llumnix_take(CancelPulls(request=RequestId("nobody"), epoch=1))
    worker.llumnix_take(ForgetPeer(addresses=("nowhere",)))
    worker.llumnix_close()
