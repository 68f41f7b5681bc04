"""The sockets and fields of `MPClient`, without starting or waiting for engines.

`MPClient.__init__` (vllm/v1/engine/core_client.py) starts its engines or, when they are external, waits
for a READY of exactly the ranks 0..n-1: neither fits engines that come and go, or a front end that is
restarted while its engines run on. So this sets the same fields itself; `hooks.py` compares the list with
what vLLM's constructors set, so that a new field fails a test and not a request.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import zmq
import zmq.asyncio
from vllm.utils.network_utils import make_zmq_socket
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.engine.core_client import BackgroundResources
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.curve_sockets import require_curve
from llumnix.wire.curve import CurveKeys, Doorkeeper


class Calls(dict[int, Any]):
    """vLLM's calls to engines that wait for their answers, by number.

    A front end has the addresses of the one that died before it, and engines may still answer that one's calls. vLLM
    knows no such thing: an answer to an unknown call would end its output task, and every stream with it. Nor does it
    forget a call that was given up, because its engine is gone.
    """

    def __setitem__(self, number: int, answer: Any) -> None:
        super().__setitem__(number, answer)
        answer.add_done_callback(lambda _: super(Calls, self).pop(number, None))

    def pop(self, number: int) -> Any:  # type: ignore[override]
        """Relied on by vLLM's `_process_utility_output`, which leaves a cancelled future alone."""
        if number in self:
            return super().pop(number)
        nobody = asyncio.get_running_loop().create_future()
        nobody.cancel()
        return nobody


def set_up_sockets(client: Any, vllm_config: Any, spec: FrontEndSpec) -> None:
    """Binds the request and token sockets of this front end."""
    context = zmq.Context(io_threads=2)
    client.vllm_config = vllm_config
    client._renderer = None
    client._effective_attention_block_sizes = set()
    client._kv_event_sources = {}
    client.ctx = zmq.asyncio.Context(context)
    client.resources = BackgroundResources(ctx=context)
    client._finalizer = weakref.finalize(client, client.resources)
    client.engines_running = False
    client.stats_update_address = None
    mine = spec.book.fronts[spec.index]
    client.doorkeeper = doorkeeper = _guard(client.ctx, context, spec.book.keys)
    client.input_socket = client.resources.input_socket = make_zmq_socket(
        client.ctx, mine.requests, zmq.ROUTER, bind=True
    )
    client.resources.output_socket = make_zmq_socket(client.ctx, mine.tokens, zmq.PULL)
    if doorkeeper is not None:
        for socket in (client.input_socket, client.resources.output_socket):
            require_curve(socket)
            doorkeeper.watch(socket)
    client.encoder = MsgpackEncoder()
    client.decoder = MsgpackDecoder(EngineCoreOutputs)
    client.input_address = client.input_socket.getsockopt_string(zmq.LAST_ENDPOINT)
    client.output_address = client.resources.output_socket.getsockopt_string(zmq.LAST_ENDPOINT)
    client.coordinator_input_address = client.coordinator_output_address = None
    client.engine_ranks_managed = list(range(spec.cluster.instances))
    client.core_engines = []
    client.core_engine = b""
    client.utility_results = Calls()
    # AsyncMPClient
    client.client_count = spec.book.front_ends
    client.client_index = spec.index
    client.outputs_queue = asyncio.Queue()
    client._engine_status = {}


def _guard(context: zmq.asyncio.Context, underlying: zmq.Context[Any], keys: CurveKeys | None) -> Doorkeeper | None:
    """Between machines, engines must hold the keys. The doorkeeper ends with the process, as the sockets do."""
    if keys is None:
        return None
    doorkeeper = Doorkeeper(underlying, keys)
    keys.accepting(context)
    return doorkeeper
