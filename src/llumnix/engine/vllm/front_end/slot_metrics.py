"""vLLM's own metrics, of a server whose instances are known late and become more than it began with.

vLLM makes a series for each engine when a server starts, and none later.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.registry import Collector
from vllm.v1.metrics.loggers import StatLoggerManager


class SlotMetrics(StatLoggerManager):
    """`AsyncLLM` makes it in place of its own, with what it gives that one (llm.py)."""

    def __init__(self, **given: Any) -> None:
        self._given = given
        self._sleep = (0, 0)
        self._make(given)

    def _make(self, given: dict[str, Any]) -> None:
        """vLLM takes whatever is called `vllm:` out of the registry first: what is not made here comes back."""
        before = _registered()
        self._has_told_of_caches = False
        super().__init__(**given)
        self._made = _registered() - before
        for lost in before - _registered():
            REGISTRY.register(lost)

    def grow(self, slots: int) -> None:
        """To so many instances.

        With one front end vLLM's counters start again from zero, as after a restart, which Prometheus can read.
        """
        for collector in self._made & _registered():
            REGISTRY.unregister(collector)
        self._make(self._given | {"engine_idxs": list(range(slots))})
        self.record_sleep_state(*self._sleep)
        self.log_engine_initialized()

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        self._sleep = sleep, level
        super().record_sleep_state(sleep, level)

    def log_engine_initialized(self) -> None:
        """What the metrics tell of an engine's cache: nothing as long as none is known."""
        if self._has_told_of_caches or self._given["vllm_config"].cache_config.num_gpu_blocks is None:
            return
        self._has_told_of_caches = True
        before = _registered()
        super().log_engine_initialized()
        self._made |= _registered() - before


def _registered() -> set[Collector]:
    return set(REGISTRY._collector_to_names)
