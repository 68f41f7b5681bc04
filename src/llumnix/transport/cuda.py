"""What of CUDA's driver a transport needs and torch has no words for: another process's memory, many copies at once.

The signatures are those of cuda.h 13. A call works on the thread's current context, which `SideStream.running` sees to.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llumnix.transport.port import TransportError

LIBRARY = "libcuda.so.1"
HANDLE_BYTES = 64
_ENABLE_PEER_ACCESS = 1
_IN_ORDER_OF_STREAM = 1

Addresses = NDArray[np.uint64]


class _Handle(ctypes.Structure):
    """`CUipcMemHandle`."""

    _fields_ = [("reserved", ctypes.c_char * HANDLE_BYTES)]


class _Location(ctypes.Structure):
    """`CUmemLocation`."""

    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _Attributes(ctypes.Structure):
    """`CUmemcpyAttributes`."""

    _fields_ = [("order", ctypes.c_int), ("source", _Location), ("target", _Location), ("flags", ctypes.c_uint)]


class CudaDriver:
    def __init__(self, library: str = LIBRARY) -> None:
        """Raises TransportError when there is no such driver here."""
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise TransportError(f"CUDA's driver cannot be loaded: {error}") from error
        self._copy_batch = getattr(self._cuda, "cuMemcpyBatchAsync_v2", None)  # since CUDA 13

    def share(self, address: int) -> tuple[bytes, int]:
        """A handle for the allocation in which `address` is, and how far into it. Raises TransportError for memory that
        cannot be shared so (of `expandable_segments`, or of vLLM's sleep mode)."""
        base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
        where = ctypes.c_uint64(address)
        self._must("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), where)
        self._must("cuIpcGetMemHandle", ctypes.byref(handle), where)
        return bytes(handle), address - base.value

    def open(self, handle: bytes) -> int:
        """Maps another process's allocation; where it is here. Raises TransportError where that is not possible."""
        base = ctypes.c_uint64()
        flags = ctypes.c_uint(_ENABLE_PEER_ACCESS)
        self._must("cuIpcOpenMemHandle_v2", ctypes.byref(base), _Handle.from_buffer_copy(handle), flags)
        return base.value

    def close(self, base: int) -> None:
        """Undoes `open`."""
        self._must("cuIpcCloseMemHandle", ctypes.c_uint64(base))

    def copy(self, targets: Addresses, sources: Addresses, sizes: Addresses, stream: int) -> None:
        """Gives the stream these copies between devices, or within one."""
        if self._copy_batch is not None and stream:
            self._copy_at_once(targets, sources, sizes, stream)
            return
        for target, source, size in zip(targets.tolist(), sources.tolist(), sizes.tolist(), strict=True):
            places = ctypes.c_uint64(target), ctypes.c_uint64(source)
            self._must("cuMemcpyDtoDAsync_v2", *places, ctypes.c_size_t(size), ctypes.c_void_p(stream))

    def _copy_at_once(self, targets: Addresses, sources: Addresses, sizes: Addresses, stream: int) -> None:
        attributes, first = _Attributes(order=_IN_ORDER_OF_STREAM), ctypes.c_size_t(0)
        lists = [ctypes.c_void_p(np.ascontiguousarray(each).ctypes.data) for each in (targets, sources, sizes)]
        count, kinds = ctypes.c_size_t(len(sizes)), ctypes.c_size_t(1)
        how = ctypes.byref(attributes), ctypes.byref(first), kinds
        self._must("cuMemcpyBatchAsync_v2", *lists, count, *how, ctypes.c_void_p(stream))

    def _must(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            word = ctypes.c_char_p()
            self._cuda.cuGetErrorName(code, ctypes.byref(word))
            raise TransportError(f"{name} failed with {(word.value or b'an unknown error').decode()} ({code})")
