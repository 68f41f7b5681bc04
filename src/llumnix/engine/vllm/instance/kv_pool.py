"""vLLM's KV cache as a pool of blocks that a transport can serve.

0.32 has one logical layout: the first dimension of every layer's view is (kernel) blocks, whatever the
physical order (`vllm/v1/kv_cache_layout.py`). Groups overlay each other (`allocate_kv_cache` in
vllm/v1/worker/utils.py): layers of different groups may share memory, and one may use less of it than another. Block
ids are unique over all groups, so each place in memory is one region, as long as whoever uses most of it, and a
scheduler block id indexes all.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import vllm

from llumnix.transport.port import Transport
from llumnix.transport.sockets import SocketOptions, SocketTransport
from llumnix.transport.staging import pool_of
from llumnix.wire.addresses import AddressBook


def kv_views(model_runner: Any) -> list[torch.Tensor]:
    """One view per place in memory, indexed by scheduler block id in dimension 0, with all that any layer keeps there.

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
    return list(largest.values())


def open_transport(worker: Any, book: AddressBook, secret: bytes) -> Transport:
    """Starts to serve the worker's blocks on a unix socket and, for other machines, over TCP.

    The socket is in the temporary folder, which is the instance's own (cluster/nursery.py) and goes with it.
    """
    views = kv_views(worker.model_runner)
    pool = pool_of(views, fingerprint=_fingerprint(worker, views))
    options = SocketOptions(folder=Path(tempfile.gettempdir()), tcp_host=book.host or "127.0.0.1")
    return SocketTransport(pool, secret, options)


def _fingerprint(worker: Any, views: list[torch.Tensor]) -> str:
    """Equal if blocks of the two workers mean the same: vLLM, model, drafter, cache type, block shape and place among
    the engine's workers. Another version may lay out or compute what looks the same otherwise."""
    config = worker.vllm_config
    parallel = config.parallel_config
    shapes = {f"{tuple(view.shape[1:])}/{view.dtype}" for view in views}
    model = config.model_config
    return (
        f"vllm{vllm.__version__}/{model.model}@{model.revision}/{model.dtype}/{config.cache_config.cache_dtype}"
        f"/{_drafter(config)}/rank{worker.rank}of{parallel.tensor_parallel_size}x{parallel.pipeline_parallel_size}"
        f"/{'+'.join(sorted(shapes))}"
    )


def _drafter(config: Any) -> str:
    """Whose KV is in the blocks beside the model's."""
    speculative = config.speculative_config
    if speculative is None:
        return "no drafts"
    draft = speculative.draft_model_config
    model = "" if draft is None else f"{draft.model}@{draft.revision}/{draft.dtype}"
    return f"{speculative.method}{speculative.num_speculative_tokens}:{model}"
