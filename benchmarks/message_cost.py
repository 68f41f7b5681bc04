"""What one message between a scheduler and an instance costs the scheduler's process, measured.

The numbers behind figure 16 (`src/llumnix/paper/stall.py`): a centralised scheduler hears from every instance in
every iteration, which of its requests made a token, does its bookkeeping, and answers with the next batch. It is one
Python process on ZeroMQ and msgspec, as our own processes are. What a report of ours costs: `report_cost.py`.

    python benchmarks/message_cost.py
"""

from __future__ import annotations

import sys
import threading
import time

import msgspec
import numpy as np
import zmq
from frame.verdict import Figure, conclude

ROUNDS = 3000


class Status(msgspec.Struct, frozen=True):
    request: str
    tokens: int
    blocks: int


class Iteration(msgspec.Struct, frozen=True):
    instance: int
    statuses: list[Status]


class NextBatch(msgspec.Struct, frozen=True):
    requests: list[str]


def centralised_s(batch: int) -> float:
    """CPU time of the scheduler per iteration of one instance with `batch` requests."""
    context = zmq.Context()
    server, client = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    server.bind("inproc://central")
    client.connect("inproc://central")
    decoder = msgspec.msgpack.Decoder(Iteration)
    known = {f"request-{number}": [0, 0] for number in range(batch)}
    message = msgspec.msgpack.encode(Iteration(3, [Status(name, 100, 7) for name in known]))
    spent = 0.0

    def instance() -> None:
        for _ in range(ROUNDS):
            client.send(message)
            client.recv()

    thread = threading.Thread(target=instance)
    thread.start()
    for _ in range(ROUNDS):
        server.poll()
        start = time.thread_time()
        for status in decoder.decode(server.recv()).statuses:
            entry = known[status.request]
            entry[0], entry[1] = status.tokens, status.blocks
        server.send(msgspec.msgpack.encode(NextBatch(list(known))))
        spent += time.thread_time() - start
    thread.join()
    for socket in (server, client):
        socket.close()
    context.term()
    return spent / ROUNDS


def main() -> int:
    batches = (1, 4, 8, 16, 32, 64)
    costs = [min(centralised_s(batch) for _ in range(3)) for batch in batches]
    slope, base = np.polyfit(batches, costs, 1)
    for batch, cost in zip(batches, costs, strict=True):
        print(f"batch of {batch:3}: {cost * 1e6:6.1f} us per iteration")
    return conclude(
        Figure("per iteration of an instance", base * 1e6, unit="us"),
        Figure("and per request in it", slope * 1e6, unit="us"),
    )


if __name__ == "__main__":
    sys.exit(main())
