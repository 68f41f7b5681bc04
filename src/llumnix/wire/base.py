"""Control messages between our processes: msgspec structs, told apart by their tags, versioned by a leading byte.

Each process has a mailbox of its own, and a module here with all that it takes: `to_instance`, `to_scheduler`,
`to_launcher`, `to_front_end`, `to_worker`; `news` is what several of them hear. Tokens never travel here; they go from
an instance straight to the front end on vLLM's own sockets.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from llumnix.types import InstanceId

WIRE_VERSION = 1

Kind = TypeVar("Kind")

Frame = bytes | bytearray | memoryview
"""What comes beside a message, as it is: pixels, mostly."""


class Wire(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all wire messages."""


class Question(Wire, frozen=True, kw_only=True, tag=True):
    """Base of what is to be answered. Whoever sends one says how (`Questions`)."""

    query: int = 0
    """The answer repeats it."""
    reply_to: str = ""
    """The mailbox that waits for the answer; empty: none does."""


class InstanceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach an instance. `index` is its identity on vLLM's sockets, used again after 65,536 others."""

    id: InstanceId
    index: int
    slot: int
    """Its place among the instances; the successor of a dead one gets the same. vLLM's metrics are labelled by it."""
    pid: int
    node: str
    control: str
    """Address of its mailbox."""
    data: str
    """Address of its transport (KV blocks), opaque to all but the transport."""


_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    return bytes((WIRE_VERSION,)) + _encoder.encode(message)


def decode(frame: bytes, decoder: msgspec.msgpack.Decoder[Kind]) -> Kind:
    """Raises ValueError on anything that is not a message of this version that the decoder takes."""
    if not frame or frame[0] != WIRE_VERSION:
        raise ValueError(f"not a control message of version {WIRE_VERSION}")
    return decoder.decode(memoryview(frame)[1:])
