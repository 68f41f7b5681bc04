"""Which bytes of vLLM's KV cache are a block's. Needs torch alone: `benchmarks/gpu_kv.py` has no vLLM.

0.32 has one logical layout: the first dimension of every layer's view is (kernel) blocks, whatever the
physical order (`vllm/v1/kv_cache_layout.py`). Groups overlay each other (`allocate_kv_cache` in
vllm/v1/worker/utils.py): layers of different groups may share memory, and one may use less of it than another. Block
ids are unique over all groups, so each place in memory is one region, as long as whoever uses most of it, and a
scheduler block id indexes all.
"""

from __future__ import annotations

from typing import Any

import torch


def kv_views(model_runner: Any) -> list[torch.Tensor]:
    """One view per place in memory, indexed by scheduler block id in dimension 0, with all that any layer keeps there.

    A block is seen in the order of memory, so that it is one run of bytes wherever it can be; and where the layout puts
    blocks outermost (`VLLM_KV_CACHE_LAYOUT=BLNHC`), there is one view, and a block of all layers is one run.

    Relies on `model_runner.kv_caches` and `kv_cache_config.num_blocks` (both runners, 0.32). A backend may cut
    a scheduler block into several kernel blocks: these follow each other in dimension 0.
    """
    num_blocks = model_runner.kv_cache_config.num_blocks
    largest: dict[int, torch.Tensor] = {}
    for layer in model_runner.kv_caches:
        view = layer.unflatten(0, (num_blocks, layer.shape[0] // num_blocks))
        known = largest.get(layer.data_ptr())
        if known is None or view.nbytes > known.nbytes:
            largest[layer.data_ptr()] = view
    views = [_in_order_of_memory(view) for view in largest.values()]
    return _whole_blocks(views, num_blocks) or views


def _in_order_of_memory(view: torch.Tensor) -> torch.Tensor:
    strides = view.stride()
    return view.permute(0, *sorted(range(1, view.dim()), key=lambda dim: -strides[dim]))


def _whole_blocks(views: list[torch.Tensor], num_blocks: int) -> list[torch.Tensor]:
    """All places of a block as one run, if their common memory is nothing but such runs; else nothing."""
    strides = {view.stride(0) * view.element_size() for view in views}
    storages = {view.untyped_storage().data_ptr(): view.untyped_storage() for view in views}
    if len(strides) != 1 or len(storages) != 1:
        return []
    (stride,), (storage,) = strides, storages.values()
    if storage.nbytes() != num_blocks * stride:
        return []
    word = torch.int64 if stride % 8 == 0 else torch.uint8
    words = stride // word.itemsize
    whole = torch.empty(0, dtype=word, device=views[0].device)
    return [whole.set_(storage, 0, (num_blocks, words), (words, 1))]
