"""What the launcher and the nursery say to each other, over a pair of sockets that only they have."""

from __future__ import annotations

import contextlib
import socket
from signal import SIGKILL

import msgspec

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.policy.classes import Classes
from llumnix.types import InstanceId, Role
from llumnix.wire.addresses import AddressBook

_PIECE = 1 << 16
"""Bytes that are sent at once: a socket takes some 200 KB (`net.core.wmem_default`), and classes may be longer."""
_MORE, _LAST = b"+", b"."


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


# to the nursery


class LoadEngine(_Message, frozen=True, kw_only=True, tag=True):
    """The first message: everything that all children have in common."""

    engine: str
    """Module with the functions of `engine.port.Boot`."""
    engine_flags: tuple[str, ...]
    model: str
    tiny_model: bool
    """`model` is the one that is made on the spot: on another machine it is made there."""
    node: str
    book: AddressBook
    log_dir: str | None
    """None: the children write to the nursery's own stdout and stderr."""
    secret: bytes
    policy: PolicyConfig
    migration: MigrationConfig
    cluster: ClusterConfig
    classes: Classes | None = None
    workers: int
    """Of one instance; each has a GPU of its own where there are GPUs."""
    alone: bool = False
    """This nursery makes one instance and nothing else: it opens no HTTP socket, and all devices that it sees are
    that instance's."""


class ForkInstance(_Message, frozen=True, kw_only=True, tag=True):
    id: InstanceId
    index: int
    slot: int
    role: Role = Role.MIXED
    """With which it begins."""


class ForkFrontEnd(_Message, frozen=True, kw_only=True, tag=True):
    index: int


class SignalChild(_Message, frozen=True, kw_only=True, tag=True):
    """Nothing happens if the child is gone: the nursery reaps it and so cannot hit a stranger."""

    child: str
    signal: int

    @property
    def kills(self) -> bool:
        return self.signal == SIGKILL


class StopListening(_Message, frozen=True, kw_only=True, tag=True):
    """From now on new connections are refused as soon as the front ends stopped accepting."""


# from the nursery


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A request to try; its body lacks the model's name."""

    path: str
    body: dict[str, str | int]


class Ready(_Message, frozen=True, kw_only=True, tag=True):
    """The engine is imported, its flags are good, the HTTP socket listens."""

    host: str
    port: int
    """The one that is bound, also where any was asked for."""
    example: Example | None


class Failed(_Message, frozen=True, kw_only=True, tag=True):
    """It will not work; `why` is one sentence. The nursery ends."""

    why: str


class Waiting(_Message, frozen=True, kw_only=True, tag=True):
    """There is no room for this instance on any machine now; it starts when there is, and that is told."""

    child: str
    why: str


class HasRoom(_Message, frozen=True, kw_only=True, tag=True):
    """One that was waiting has a place: its engine is being loaded there."""

    child: str


class Forked(_Message, frozen=True, kw_only=True, tag=True):
    child: str
    pid: int
    node: str = ""
    """Where, if not on the launcher's own machine."""


class Leaving(_Message, frozen=True, kw_only=True, tag=True):
    """The node of this instance is being taken away."""

    child: str
    why: str
    left_s: float | None
    """Until the node is gone; None: whenever nothing runs there any more."""


class Exited(_Message, frozen=True, kw_only=True, tag=True):
    child: str
    how: str
    """The exit status in words; the launcher adds the last words in its log."""
    remains: bool = False
    """Something of it is still there, such as its workers: its place may be used once it is `Cleared`."""
    heard_unix_s: float = 0.0
    """Added by the launcher, by its clock on the wall, which front ends have, too."""


class Cleared(_Message, frozen=True, kw_only=True, tag=True):
    """Nothing is there any more of a child that exited."""

    child: str
    stuck: tuple[int, ...] = ()
    """But for these processes, which were killed and do not end."""


_FRONT_END = "front-"


def front_end_name(index: int) -> str:
    """Name of a front end's process and log; an instance's is its id."""
    return f"{_FRONT_END}{index}"


def is_front_end(name: str) -> bool:
    return name.startswith(_FRONT_END)


ToNursery = LoadEngine | ForkInstance | ForkFrontEnd | SignalChild | StopListening
FromNursery = Ready | Failed | Waiting | HasRoom | Forked | Leaving | Exited | Cleared

_to_nursery = msgspec.json.Decoder(ToNursery)
_from_nursery = msgspec.json.Decoder(FromNursery)


def channel() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that keep messages whole and in order."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def encode(message: ToNursery | FromNursery) -> bytes:
    return msgspec.json.encode(message)


def decode_order(frame: bytes) -> ToNursery:
    order: ToNursery = _to_nursery.decode(frame)
    return order


def decode_news(frame: bytes) -> FromNursery:
    news: FromNursery = _from_nursery.decode(frame)
    return news


def send(sock: socket.socket, message: ToNursery | FromNursery) -> None:
    """One thread at a time. Raises BrokenPipeError or ConnectionResetError when the other side is gone."""
    frame = encode(message)
    for begin in range(0, len(frame), _PIECE):
        end = begin + _PIECE
        sock.send((_MORE if end < len(frame) else _LAST) + frame[begin:end])


def receive_from_launcher(sock: socket.socket) -> ToNursery | None:
    """The next message; None when the launcher is gone."""
    frame = _next_frame(sock)
    return decode_order(frame) if frame else None


def receive_from_nursery(sock: socket.socket) -> FromNursery | None:
    """The next message; None when the nursery is gone."""
    frame = _next_frame(sock)
    return decode_news(frame) if frame else None


def _next_frame(sock: socket.socket) -> bytes:
    """Waits for all pieces: who sends one sends the others right after it. Empty when the other side is gone."""
    frame = b""
    with contextlib.suppress(ConnectionResetError):  # it ended before it read everything
        while piece := sock.recv(len(_LAST) + _PIECE):
            frame += piece[1:]
            if piece[:1] == _LAST:
                return frame
    return b""
