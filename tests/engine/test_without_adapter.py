"""On CPUs, vLLM computes rows without an adapter with what lies in the last place; ours are left as they are."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from llumnix.engine.vllm.instance.without_adapter import StrictPunicaWrapperCPU, make_strict

PLACES, RANK, WIDTH = 2, 3, 4
FIRST, LAST, NONE = 1, 2, 0
"""Adapters, by id: that of the first place, that of the last, and no adapter."""

Add = Callable[[Any, torch.Tensor], None]


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(PLACES, 1, *shape)


def linear(wrapper: Any, y: torch.Tensor) -> None:
    wrapper.add_lora_linear(y, torch.ones(len(y), WIDTH), (ones(RANK, WIDTH),), (ones(WIDTH, RANK),), 1.0, (WIDTH,))


def embedding(wrapper: Any, y: torch.Tensor) -> None:
    wrapper.add_lora_embedding(y, torch.ones(len(y), RANK), ones(WIDTH, RANK))


def logits(wrapper: Any, y: torch.Tensor) -> None:
    wrapper.add_lora_logits(y, torch.ones(len(y), WIDTH), ones(RANK, WIDTH), ones(WIDTH, RANK), 1.0)


def changed(kind: type[PunicaWrapperCPU], add: Add, *adapters: int) -> list[bool]:
    """Of a batch of one token for each of these requests: to which rows something is added."""
    wrapper = PunicaWrapperCPU(8, 8, "cpu")
    wrapper.__class__ = kind
    mapping = LoRAMapping(index_mapping=adapters, prompt_mapping=adapters, is_prefill=True)
    wrapper.update_metadata(mapping, [FIRST, LAST], PLACES + 1, 258)
    y = torch.zeros(len(adapters), WIDTH)
    add(wrapper, y)
    return [bool(row.any()) for row in y]


@pytest.mark.parametrize("add", [linear, embedding, logits])
@pytest.mark.parametrize("batch", [(NONE, FIRST), (FIRST, NONE, LAST), (NONE,), (NONE, NONE), (LAST, FIRST)])
def test_rows_without_an_adapter_stay_as_they_are(add: Add, batch: tuple[int, ...]) -> None:
    assert changed(StrictPunicaWrapperCPU, add, *batch) == [adapter != NONE for adapter in batch]


@pytest.mark.parametrize("add", [linear, embedding, logits])
def test_vllm_adds_the_last_adapter_to_requests_without_one(add: Add) -> None:
    """Once this fails, vLLM has mended it, and `without_adapter.py` can go."""
    assert changed(PunicaWrapperCPU, add, NONE, FIRST) == [True, True]


def test_vllm_leaves_a_batch_without_adapters_alone_but_in_the_head() -> None:
    assert changed(PunicaWrapperCPU, linear, NONE) == [False]
    assert changed(PunicaWrapperCPU, embedding, NONE) == [False]
    assert changed(PunicaWrapperCPU, logits, NONE) == [True]


def test_make_strict_takes_the_wrapper_that_vllm_made() -> None:
    """Its rows may have a dimension more, as from models of the Transformers library."""
    wrapper: Any = PunicaWrapperCPU(8, 8, "cpu")
    mapping = LoRAMapping(index_mapping=(NONE, FIRST), prompt_mapping=(NONE, FIRST), is_prefill=True)
    wrapper.update_metadata(mapping, [FIRST, LAST], PLACES + 1, 258)
    make_strict(SimpleNamespace(_adapter_manager=SimpleNamespace(punica_wrapper_mapping={"model": wrapper})))
    y = torch.zeros(1, 2, WIDTH)
    wrapper.add_expand(y, (torch.ones(2, RANK),), (ones(WIDTH, RANK),), (WIDTH,))
    assert y.any(dim=2).tolist() == [[False, True]]
