"""A worker's KV cache (kv_views.py) as a pool of blocks that a transport serves, and what must be equal of two."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import vllm

from llumnix.engine import gpus
from llumnix.engine.vllm.instance.kv_views import kv_views
from llumnix.transport.cuda import CudaDriver
from llumnix.transport.mapped import MappedMemory
from llumnix.transport.nixl import NixlReader
from llumnix.transport.port import Transport, TransportError
from llumnix.transport.reader import Reader
from llumnix.transport.sockets import SocketOptions, SocketTransport
from llumnix.transport.staging import StagedPool, pool_of
from llumnix.wire.addresses import AddressBook

log = logging.getLogger(__name__)

GIL_SWITCH_S = 0.0005
"""How long a thread that holds the interpreter keeps it when another wants it. Python's own 5 ms is what a pull through
host memory would wait at each of its turns, in an engine whose main thread is hardly ever out of Python."""

_WRITE_ALIKE = {"vec16": "vec"}
"""Kernels of vLLM's attention on CPUs that read in other strides what they write in one order."""


def open_transport(worker: Any, book: AddressBook, secret: bytes, ways: list[str], max_incoming: int) -> Transport:
    """Starts to serve the worker's blocks on a unix socket and, for other machines, over TCP; and to peers
    that read them themselves, by those of `ways` that work here. `max_incoming`: requests that come here at once.

    The socket is in the temporary folder, which is the instance's own (cluster/nursery.py) and goes with it.
    """
    views = kv_views(worker.model_runner)
    pool = pool_of(views, fingerprint=_fingerprint(worker, views))
    options = SocketOptions(
        folder=Path(tempfile.gettempdir()),
        tcp_host=book.host or "127.0.0.1",
        max_pulls=2 * max_incoming,  # of each one; and as many that are called off, and not over yet
    )
    if isinstance(pool, StagedPool):
        sys.setswitchinterval(GIL_SWITCH_S)
    return SocketTransport(pool, secret, options, _readers(views, ways))


def _readers(views: list[torch.Tensor], ways: list[str]) -> list[Reader]:
    kinds: dict[str, Callable[[], Reader]] = {
        "same-gpu": lambda: MappedMemory(views, CudaDriver(), gpu=_gpu(views[0].device), between_gpus=False),
        "cuda": lambda: MappedMemory(views, CudaDriver(), gpu=_gpu(views[0].device), between_gpus=True),
        "nixl": lambda: NixlReader(views),
    }
    made: list[Reader] = []
    for way in ways:
        try:
            made.append(kinds[way]())
        except TransportError as error:
            log.warning("no block moves by %s here: %s", way, error)
    return made


def _gpu(device: torch.device) -> str:
    """Its UUID; empty if it is none, or a part of one, or nobody can tell."""
    return gpus.whole(str(getattr(torch.cuda.get_device_properties(device), "uuid", "")), gpus.installed())


def _fingerprint(worker: Any, views: list[torch.Tensor]) -> str:
    """Equal if blocks of the two workers mean the same: vLLM, model, drafter, cache type, layout, block shape, what
    writes there, and place among the engine's workers. Another version may lay out or compute what looks the same
    otherwise."""
    config = worker.vllm_config
    parallel = config.parallel_config
    shapes = {f"{tuple(view.shape[1:])}/{view.dtype}" for view in views}
    model = config.model_config
    layout = getattr(config.cache_config, "kv_cache_layout", None)  # since 0.32
    return (
        f"vllm{vllm.__version__}/{model.model}@{model.revision}/{model.dtype}/{config.cache_config.cache_dtype}"
        f"/{layout}/{_drafter(config)}"
        f"/rank{worker.rank}of{parallel.tensor_parallel_size}x{parallel.pipeline_parallel_size}"
        f"/{'+'.join(sorted(shapes))}/{_writers(worker.model_runner)}"
    )


def _writers(model_runner: Any) -> str:
    """What writes the blocks of each KV group: each backend, and each of vLLM's kernels for a kind of processors, may
    order K and V within a block of one shape in a way of its own.

    Relies on `model_runner.attn_groups` (both runners) and, on CPUs, on `CPUAttentionMetadataBuilder.isa`."""
    return ",".join("+".join(sorted({_writer(group) for group in groups})) for groups in model_runner.attn_groups)


def _writer(group: Any) -> str:
    backend: str = group.backend.get_name()
    isa = getattr(group.get_metadata_builder(), "isa", "")
    return f"{backend}:{_WRITE_ALIKE.get(isa, isa)}" if isa else backend


def _drafter(config: Any) -> str:
    """Whose KV is in the blocks beside the model's."""
    speculative = config.speculative_config
    if speculative is None:
        return "no drafts"
    draft = speculative.draft_model_config
    model = "" if draft is None else f"{draft.model}@{draft.revision}/{draft.dtype}"
    return f"{speculative.method}{speculative.num_speculative_tokens}:{model}"
