"""A worker's KV cache (kv_views.py) as a pool of blocks that a transport serves, and what must be equal of two."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import vllm

from llumnix.engine.vllm.instance.kv_views import kv_views
from llumnix.transport.port import Transport
from llumnix.transport.sockets import SocketOptions, SocketTransport
from llumnix.transport.staging import pool_of
from llumnix.wire.addresses import AddressBook


def open_transport(worker: Any, book: AddressBook, secret: bytes) -> Transport:
    """Starts to serve the worker's blocks on a unix socket and, for other machines, over TCP.

    The socket is in the temporary folder, which is the instance's own (cluster/nursery.py) and goes with it.
    """
    views = kv_views(worker.model_runner)
    pool = pool_of(views, fingerprint=_fingerprint(worker, views))
    options = SocketOptions(folder=Path(tempfile.gettempdir()), tcp_host=book.host or "127.0.0.1")
    return SocketTransport(pool, secret, options)


def _fingerprint(worker: Any, views: list[torch.Tensor]) -> str:
    """Equal if blocks of the two workers mean the same: vLLM, model, drafter, cache type, layout, block shape and place
    among the engine's workers. Another version may lay out or compute what looks the same otherwise."""
    config = worker.vllm_config
    parallel = config.parallel_config
    shapes = {f"{tuple(view.shape[1:])}/{view.dtype}" for view in views}
    model = config.model_config
    layout = getattr(config.cache_config, "kv_cache_layout", None)  # since 0.32
    return (
        f"vllm{vllm.__version__}/{model.model}@{model.revision}/{model.dtype}/{config.cache_config.cache_dtype}"
        f"/{layout}/{_drafter(config)}"
        f"/rank{worker.rank}of{parallel.tensor_parallel_size}x{parallel.pipeline_parallel_size}"
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
