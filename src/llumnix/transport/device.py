"""The device that tensors are on, as threads of a transport use it: beside the engine, in a stream of their own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from llumnix.transport.port import TransportError

if TYPE_CHECKING:
    import torch


@contextmanager
def told() -> Generator[None]:
    """torch's errors (no memory left, a fault of the device) as ones of the transport: a pull ends, no engine."""
    try:
        yield
    except RuntimeError as error:
        first, *_ = str(error).split("\n")
        raise TransportError(f"torch cannot copy blocks: {first}") from error


class Moment:
    """A point in a stream that a thread can wait for, with the GIL released. On a CPU all is done at once."""

    def __init__(self, device: torch.device) -> None:
        import torch

        # Blocking: else who waits keeps a core busy, and the driver's lock from those who launch.
        self._event: Any = torch.cuda.Event(blocking=True) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def record(self) -> None:
        """It is after all that the current stream has been given so far."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        if self._event is not None:
            with told():
                self._event.synchronize()


class SideStream:
    """What is done in `running` goes to a stream of its own on a GPU. The stream and the mode belong to the thread, so
    they are never held across a `yield`."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def handle(self) -> int:
        """The driver's, 0 where there is none."""
        return 0 if self._stream is None else self._stream.cuda_stream

    @contextmanager
    def running(self) -> Generator[None]:
        import torch

        if self._stream is not None:  # else leaving the stream would make device 0 this thread's, and a context there
            torch.cuda.set_device(self._device)
        # vLLM makes its KV tensors in inference mode, and only there they may be written in place.
        stream = torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()
        with told(), torch.inference_mode(), stream:
            yield
