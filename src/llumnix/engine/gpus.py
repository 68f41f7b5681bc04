"""Which NVIDIA GPUs there are, and which of them this process may use: from NVML, which needs but the driver and makes
no CUDA context. A process that has one must not fork.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from llumnix.errors import UsageError

VISIBLE = "CUDA_VISIBLE_DEVICES"

_LIBRARY = "libnvidia-ml.so.1"  # comes with the driver
_WORD_BYTES = 96  # of names, UUIDs and versions, at most
_SHARED = 0  # of nvmlComputeMode_t
_UNIQUE = re.compile(r"(GPU|MIG)-")


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    for_many: bool
    """Several processes may use it at once; an administrator can forbid that (`nvidia-smi --compute-mode`)."""


@dataclass(frozen=True, slots=True)
class GpuMachine:
    driver: str
    cuda: tuple[int, int]
    """The newest CUDA that the driver serves."""
    gpus: tuple[Gpu, ...]


class _Memory(ctypes.Structure):
    """`nvmlMemory_t`."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def installed(library: str = _LIBRARY) -> GpuMachine | None:
    """None if there is no driver that works."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    with _shut_down(nvml):
        count, cuda = ctypes.c_uint(), ctypes.c_int()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(cuda))
        return GpuMachine(
            driver=_word(nvml.nvmlSystemGetDriverVersion),
            cuda=(cuda.value // 1000, cuda.value % 1000 // 10),
            gpus=tuple(_gpu(nvml, index) for index in range(count.value)),
        )


@contextmanager
def _shut_down(nvml: ctypes.CDLL) -> Iterator[None]:
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu:
    handle, memory, mode = ctypes.c_void_p(), _Memory(), ctypes.c_uint()
    nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    nvml.nvmlDeviceGetComputeMode(handle, ctypes.byref(mode))
    name, uuid = _word(nvml.nvmlDeviceGetName, handle), _word(nvml.nvmlDeviceGetUUID, handle)
    return Gpu(name, uuid, memory.total, memory.free, for_many=mode.value == _SHARED)


def _word(ask: Callable[..., int], *about: ctypes.c_void_p) -> str:
    word = ctypes.create_string_buffer(_WORD_BYTES)
    ask(*about, word, ctypes.c_uint(_WORD_BYTES))
    return word.value.decode()


def visible(environment: Mapping[str, str], count: int) -> list[str]:
    """The devices that CUDA would show of `count` that there are, as it may be told of them in `CUDA_VISIBLE_DEVICES`:
    numbers, or what begins as their UUIDs or those of parts of them (MIG) do.

    Raises UsageError for a number that is none of them, and for one that stands there twice: CUDA would hide all that
    follows.
    """
    words = environment.get(VISIBLE)
    if words is None:
        return [str(index) for index in range(count)]
    devices = [word.strip() for word in words.split(",") if word.strip()]
    for device in devices:
        if not _UNIQUE.match(device) and not (device.isdecimal() and int(device) < count):
            raise UsageError(f"{VISIBLE}={words} names {device}, and there are {count} GPUs, which count from 0.")
    if len(set(devices)) < len(devices):
        raise UsageError(f"{VISIBLE}={words} names a GPU twice; --instances-per-gpu has instances share one.")
    return devices
