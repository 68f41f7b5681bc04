"""How much a front end keeps of images and the like, beyond their first token, so that streams can be replayed."""

from __future__ import annotations

from llumnix.types import RequestId


class KeptMedia:
    """A stream that does not fit when it begins is not kept later either: what it had is gone by then."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: dict[RequestId, int] = {}
        self.bytes = 0

    def why_not(self, size: int) -> str:
        """Why so many bytes would not be kept now; empty if they would."""
        if not size or self.bytes + size <= self._most_bytes:
            return ""
        return (
            f"its images and the like ({_mb(size)}) were not kept for that, as --kept-media-mb allows "
            f"{_mb(self._most_bytes)} of them for all streams together"
        )

    def keep(self, request: RequestId, size: int) -> bool:
        """Whether they are kept from now on."""
        if size and not self.why_not(size):
            self._kept[request] = size
            self.bytes += size
        return not size or request in self._kept

    def forget(self, request: RequestId) -> None:
        self.bytes -= self._kept.pop(request, 0)


def _mb(size: int) -> str:
    return f"{size / (1 << 20):.3g} MB"
