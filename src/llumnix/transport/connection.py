"""One connection between a puller and a source: frames, scattered bytes, deadlines, and who the peer is.

    source -> puller   Hello(nonce)                   the source speaks first: a port scanner learns nothing else
    puller -> source   Proof(nonce, mac, shape)       mac = HMAC-SHA256(secret, "puller", both nonces, incarnation)
    source -> puller   Welcome(mac) | refused         the source proves itself, too, so nobody can pose as one
    puller -> source   Request(block ids)             again and again
    source -> puller   Reply(bytes), then the bytes | Reply(where the blocks are to be read: reader.py) | refused

A frame is four bytes of length (big-endian) and a msgpack array. The secret proves who may connect; it
does not encrypt: between hosts, run over a network that you trust.

The sockets stay in blocking mode and their time limits are the kernel's (SO_RCVTIMEO, SO_SNDTIMEO): Python's own
`settimeout` would return to Python, and wait for the GIL, for every socket buffer full of bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import os
import socket
import struct
import time
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from llumnix.transport.pieces import receive_pieces, send_pieces
from llumnix.transport.port import IoVecs, PoolShape

PROTOCOL = 1
HANDSHAKE_FRAME_BYTES = 64 * 1024
"""Bound of what is read from a peer that has not proven itself (a shape of some thousand regions)."""
UNIX_BUFFER_BYTES = 1 << 20
"""That may be on their way in a unix socket. For TCP the kernel finds by itself how much that has to be, if nobody sets
it, and may then go beyond its bound for what is set (`wmem_max`, 208 KiB where nobody changed it)."""
_LENGTH = struct.Struct(">I")
_TIMEVAL = struct.Struct("@ll")


class SourceRefused(Exception):
    """The peer understood and said no; `str(error)` is its reason. The connection stays usable."""


class ProtocolError(ConnectionError):
    """The peer does not speak this protocol, or breaks it."""


class Hello(msgspec.Struct, frozen=True, array_like=True):
    protocol: int
    nonce: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True):
    nonce: bytes
    mac: bytes
    shape: PoolShape


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    mac: bytes
    refused: str = ""


class Request(msgspec.Struct, frozen=True, array_like=True):
    """`blocks` are little-endian unsigned 32-bit ids; `time_left_s` bounds how long the source tries."""

    blocks: bytes
    time_left_s: float
    reads_by: str = ""
    """The puller wants no bytes, but to know where they are for a reader of this scheme (reader.py)."""

    @classmethod
    def of(cls, blocks: NDArray[np.uint64], time_left_s: float, reads_by: str = "") -> Request:
        return cls(blocks.astype("<u4").tobytes(), time_left_s, reads_by)

    @property
    def block_ids(self) -> NDArray[np.uint32]:
        return np.frombuffer(self.blocks[: len(self.blocks) // 4 * 4], dtype="<u4")


class Mapping(msgspec.Struct, frozen=True, array_like=True):
    """Where a source's pool is, for readers of one kind: a handle for its memory, and of each region where it begins
    (in there, or among its addresses) and how far its blocks are apart. How long a chunk is both ends know."""

    handle: bytes
    regions: tuple[tuple[int, int], ...]
    device: int = 0
    """As the source counts those that it sees."""


class Reply(msgspec.Struct, frozen=True, array_like=True):
    bytes: int
    refused: str = ""
    mapping: Mapping | None = None


M = TypeVar("M", bound=msgspec.Struct)


class Connection:
    """A connected socket with a deadline. Used by one thread, which closes it; others may `shut` it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self.until_s = math.inf
        """No call goes on beyond this instant of `time.monotonic`: it raises TimeoutError."""

    def send(self, message: msgspec.Struct) -> None:
        body = msgspec.msgpack.encode(message)
        self._limit(socket.SO_SNDTIMEO)
        try:
            self._sock.sendall(_LENGTH.pack(len(body)) + body)
        except BlockingIOError:
            raise TimeoutError("the peer took no bytes in time") from None

    def receive(self, kind: type[M], max_bytes: int) -> M:
        """The next frame. Raises ProtocolError when it is longer than `max_bytes` or not a `kind`."""
        (length,) = _LENGTH.unpack(self._receive_exactly(_LENGTH.size))
        if length > max_bytes:
            raise ProtocolError(f"a frame of {length} bytes, where at most {max_bytes} can be")
        body = self._receive_exactly(length)
        try:
            return msgspec.msgpack.decode(body, type=kind)
        except ValueError as error:
            raise ProtocolError(f"a frame is not a {kind.__name__}: {error}") from None

    def send_pieces(self, pieces: IoVecs) -> None:
        try:
            send_pieces(self._sock, pieces, lambda: self._limit(socket.SO_SNDTIMEO))
        except BlockingIOError:
            raise TimeoutError("the peer took no bytes in time") from None

    def receive_pieces(self, pieces: IoVecs) -> None:
        try:
            receive_pieces(self._sock, pieces, lambda: self._limit(socket.SO_RCVTIMEO))
        except BlockingIOError:
            raise TimeoutError("the peer sent nothing in time") from None

    def is_quiet(self) -> bool:
        """True when the peer is there and has sent nothing: an idle connection that can be used again."""
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # bytes that nobody asked for, or the end

    def shut(self) -> None:
        """Ends the connection from any thread: whoever waits on it returns at once.

        Only the owner closes, because a closed descriptor's number may at once belong to another file.
        """
        with contextlib.suppress(OSError):  # the peer was faster
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()

    def _receive_exactly(self, count: int) -> bytearray:
        received = bytearray(count)
        view = memoryview(received)
        while view:
            self._limit(socket.SO_RCVTIMEO)
            try:
                got = self._sock.recv_into(view, 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise TimeoutError("the peer sent nothing in time") from None
            if not got:
                raise EOFError("the peer closed the connection")
            view = view[got:]
        return received

    def _limit(self, option: int) -> None:
        """Lets the kernel end the next call at `until_s`. Raises TimeoutError when that has passed."""
        if math.isinf(self.until_s):
            left_s = 0.0  # to the kernel: no limit
        else:
            left_s = self.until_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the deadline passed")
        seconds, rest = divmod(left_s, 1)
        microseconds = max(int(rest * 1e6), 0 if seconds or not left_s else 1)
        self._sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(seconds), microseconds))


def welcome_puller(connection: Connection, secret: bytes, incarnation: str, shape: PoolShape) -> str | None:
    """The source's side of the handshake. Returns why the puller was refused, or None when it is welcome."""
    nonce = os.urandom(16)
    connection.send(Hello(PROTOCOL, nonce))
    proof = connection.receive(Proof, HANDSHAKE_FRAME_BYTES)
    refused: str | None = None
    if not hmac.compare_digest(proof.mac, _mac(secret, b"puller", nonce + proof.nonce, incarnation)):
        refused = "the secret is wrong, or the address is of another incarnation of this instance"
    else:
        refused = proof.shape.mismatch(shape)
    if refused is not None:
        connection.send(Welcome(b"", refused))
        return refused
    connection.send(Welcome(_mac(secret, b"source", nonce + proof.nonce, incarnation)))
    return None


def greet_source(connection: Connection, secret: bytes, incarnation: str, shape: PoolShape) -> None:
    """The puller's side of the handshake. Raises SourceRefused, and ProtocolError if the source cannot prove itself."""
    hello = connection.receive(Hello, HANDSHAKE_FRAME_BYTES)
    if hello.protocol != PROTOCOL:
        raise SourceRefused(f"the source speaks version {hello.protocol} of the protocol, this end version {PROTOCOL}")
    nonce = os.urandom(16)
    connection.send(Proof(nonce, _mac(secret, b"puller", hello.nonce + nonce, incarnation), shape))
    welcome = connection.receive(Welcome, HANDSHAKE_FRAME_BYTES)
    if welcome.refused:
        raise SourceRefused(welcome.refused)
    if not hmac.compare_digest(welcome.mac, _mac(secret, b"source", hello.nonce + nonce, incarnation)):
        raise ProtocolError("the source does not know the secret")


def _mac(secret: bytes, role: bytes, nonces: bytes, incarnation: str) -> bytes:
    message = b"\0".join([b"llumnix-kv", bytes([PROTOCOL]), role, incarnation.encode(), nonces])
    return hmac.new(secret, message, hashlib.sha256).digest()
