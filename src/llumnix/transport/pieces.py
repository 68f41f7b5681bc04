"""Scattered memory to and from a socket, without copies and with little time under the GIL.

The kernel moves up to `IOV_MAX` pieces in one call. Python's own `sendmsg` takes a list of buffer objects,
one per piece, made and parsed under the GIL. Here numpy lays out the kernel's `struct iovec` array for a whole
request at once, and a call costs a few microseconds of Python however many pieces it moves: in pieces of 16 KiB
that is 9 to 14 ms of Python per GiB instead of 32, taken from the decode loop of the process.
(The GIL is released during the call itself, see `ctypes.CDLL`.)
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llumnix.transport.port import BlockIds, IoVecs

IOV_MAX = 1024
"""Pieces in one system call (Linux, UIO_MAXIOV)."""
IOVEC_BYTES = 16


class _MessageHeader(ctypes.Structure):
    """`struct msghdr` of Linux on 64 bits (see `man 2 recvmsg`)."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("pieces", ctypes.c_void_p),
        ("piece_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


_libc = ctypes.CDLL(None, use_errno=True)
_send = _libc.sendmsg
_receive = _libc.recvmsg
for _call in (_send, _receive):
    _call.argtypes = [ctypes.c_int, ctypes.POINTER(_MessageHeader), ctypes.c_int]
    _call.restype = ctypes.c_ssize_t


def pieces_of(addresses: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> IoVecs:
    """The pieces of memory in the order given; neighbours that touch become one."""
    starts = np.ones(len(addresses), dtype=bool)
    np.not_equal(addresses[1:], addresses[:-1] + lengths[:-1], out=starts[1:])
    first = np.flatnonzero(starts)
    pieces = np.empty((len(first), 2), dtype=np.uint64)
    pieces[:, 0] = addresses[first]
    pieces[:, 1] = np.add.reduceat(lengths, first) if len(first) else 0
    return pieces


def total_bytes(pieces: IoVecs) -> int:
    return int(pieces[:, 1].sum())


def send_pieces(sock: socket.socket, pieces: IoVecs, before_call: Callable[[], None]) -> None:
    """Sends every byte; `pieces` is used up. `before_call` runs before each system call and may raise.

    Raises OSError as the kernel reports it (BlockingIOError when the socket's send timeout passed).
    """
    _move(_send, socket.MSG_NOSIGNAL, sock, pieces, before_call)


def receive_pieces(sock: socket.socket, pieces: IoVecs, before_call: Callable[[], None]) -> None:
    """Fills every piece; `pieces` is used up. Raises as `send_pieces`, and EOFError when the peer is gone."""
    _move(_receive, socket.MSG_WAITALL, sock, pieces, before_call)


def _move(
    call: Callable[..., int], flags: int, sock: socket.socket, pieces: IoVecs, before_call: Callable[[], None]
) -> None:
    base = pieces.ctypes.data
    at = 0
    while at < len(pieces):
        before_call()
        window = pieces[at : at + IOV_MAX]
        header = _MessageHeader(pieces=base + at * IOVEC_BYTES, piece_count=len(window))
        moved = call(sock.fileno(), ctypes.byref(header), flags)
        if moved < 0:
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        elif moved == 0:
            raise EOFError("the peer closed the connection")
        else:
            at += _use_up(window, moved)


def _use_up(window: IoVecs, moved: int) -> int:
    """Takes `moved` bytes off the front of `window`; returns how many of its pieces are finished."""
    ends = window[:, 1].cumsum()
    finished = int(np.searchsorted(ends, moved, side="right"))
    if finished < len(window):
        part = moved - (int(ends[finished - 1]) if finished else 0)
        window[finished, 0] += np.uint64(part)
        window[finished, 1] -= np.uint64(part)
    return finished


def block_ids(blocks: BlockIds, num_blocks: int) -> NDArray[np.uint64]:
    """The ids as an array. Raises ValueError when one is not a block of a pool of `num_blocks`."""
    ids = np.asarray(blocks, dtype=np.int64)
    if len(ids) and (ids.min() < 0 or ids.max() >= num_blocks):
        wrong = int(ids.max()) if ids.min() >= 0 else int(ids.min())
        raise ValueError(f"block {wrong} is not one of the {num_blocks} blocks of the pool")
    return ids.astype(np.uint64)
