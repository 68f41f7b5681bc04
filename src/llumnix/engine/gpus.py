"""Which NVIDIA GPUs there are, and which of them this process may use: from NVML, which needs but the driver and makes
no CUDA context. A process that has one must not fork.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llumnix.errors import UsageError

VISIBLE = "CUDA_VISIBLE_DEVICES"

_LIBRARY = "libnvidia-ml.so.1"  # comes with the driver
_WORD_BYTES = 96  # of names, UUIDs and versions, at most
_SHARED = 0  # of nvmlComputeMode_t
_NOT_SUPPORTED = 3  # of nvmlReturn_t
_UNIQUE = re.compile(r"(GPU|MIG)-")
_ODD = {"": "has nothing between two commas", "-1": "hides what stands behind -1"}


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    for_many: bool
    """Several processes may use it at once; an administrator can forbid that (`nvidia-smi --compute-mode`)."""
    divided: bool = False
    """Into parts that are as GPUs of their own (MIG), or nobody can tell."""


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
    return Gpu(name, uuid, memory.total, memory.free, mode.value == _SHARED, _is_divided(nvml, handle))


def _is_divided(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> bool:
    ask = getattr(nvml, "nvmlDeviceGetMigMode", None)
    if ask is None:  # older than such parts
        return False
    now, later = ctypes.c_uint(), ctypes.c_uint()
    code = ask(handle, ctypes.byref(now), ctypes.byref(later))
    return bool(now.value) if code == 0 else code != _NOT_SUPPORTED


def _word(ask: Callable[..., int], *about: ctypes.c_void_p) -> str:
    word = ctypes.create_string_buffer(_WORD_BYTES)
    ask(*about, word, ctypes.c_uint(_WORD_BYTES))
    return word.value.decode()


def whole(uuid: str, there: GpuMachine | None) -> str:
    """The UUID that NVML has for the GPU that CUDA calls so; empty if it knows none, or it is divided into parts."""
    named = [gpu.uuid for gpu in there.gpus if gpu.uuid == f"GPU-{uuid}" and not gpu.divided] if there else []
    return named[0] if len(named) == 1 else ""


def visible(environment: Mapping[str, str], there: GpuMachine | None) -> list[str] | None:
    """The devices that CUDA would show, as it may be told of them in `CUDA_VISIBLE_DEVICES`: numbers, or what begins as
    the UUIDs of GPUs do, or those of parts of them (MIG). None if the variable is not set, and `there` is no NVML that
    says what there is; numbers and UUIDs that it does say are then taken at their word.

    Raises UsageError for all of which CUDA would make something else than what is written, mostly in silence: it hides
    whatever follows a device that is not there, and everything where one is named twice.
    """
    words = environment.get(VISIBLE)
    if words is None:
        return None if there is None else [str(index) for index in range(len(there.gpus))]
    named = [word.strip() for word in words.rstrip(", ").split(",")] if words.strip(", ") else []
    try:
        devices = [_device(name, there) for name in named]
        _check_together(devices)
    except UsageError as error:
        raise UsageError(f"{VISIBLE}={words} {error}.") from None
    return devices


def meant(devices: Sequence[str], there: GpuMachine) -> list[tuple[int, Gpu]]:
    """Those of `visible` that are whole GPUs, with their numbers."""
    return [(index, gpu) for index, gpu in enumerate(there.gpus) if {str(index), gpu.uuid} & {*devices}]


def _device(name: str, there: GpuMachine | None) -> str:
    """As it is told to CUDA: a number, the whole UUID of a GPU where it is known, or that of a part of one."""
    if name.isascii() and name.isdecimal():
        if there is not None and int(name) >= len(there.gpus):
            raise UsageError(f"names {name}, and there are {len(there.gpus)} GPUs, which count from 0")
        return str(int(name))
    if _UNIQUE.match(name) is None:
        raise UsageError(f"{_ODD.get(name, f'names {name}')}, which is neither a number nor the UUID of a GPU")
    if there is None or not name.startswith("GPU-"):
        return name
    named = [gpu.uuid for gpu in there.gpus if gpu.uuid.startswith(name)]
    if len(named) != 1:
        raise UsageError(f"names {name}, and the UUIDs of {len(named) or 'no'} GPUs here begin so")
    return named[0]


def _check_together(devices: Sequence[str]) -> None:
    if len({device.partition("-")[0] if "-" in device else "" for device in devices}) > 1:
        raise UsageError(
            "mixes numbers, UUIDs of GPUs and those of parts of them, where CUDA understands one kind only"
        )
    if len(set(devices)) < len(devices):
        raise UsageError("names a GPU twice; --instances-per-gpu has instances share one")
