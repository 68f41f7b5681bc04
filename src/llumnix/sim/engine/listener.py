"""Who is told what happens in a simulated engine."""

from __future__ import annotations

from typing import Protocol

from llumnix.sim.engine.request import SimRequest


class Listener(Protocol):
    """The instance around it."""

    def on_queued(self) -> None:
        """A request came and waits."""

    def on_changed(self) -> None:
        """The load changed otherwise: a request started, ended, was preempted, or memory was given back."""

    def on_finished(self, request: SimRequest) -> None: ...

    def on_watched(self, request: SimRequest) -> None:
        """A request that somebody watches (`EngineModel.watched`) changed between computing, decoding, waiting."""
