"""What an engine computes before it serves."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from vllm.platforms import current_platform

from llumnix.engine.vllm.instance.warm_up import warm_up_requests


def test_on_a_gpu_what_draws_tokens_is_compiled_before_the_engine_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer's kernels are for batches in which nobody is greedy or has a seed, and somebody has top-k or top-p."""

    def told() -> list[tuple[float, int, float, int | None]]:
        given = [request.sampling_params for request in warm_up_requests()]
        return [(each.temperature, each.top_k, each.top_p, each.seed) for each in given if each is not None]

    greedy, drawn = (0.0, 0, 1.0, None), (1.0, 20, 0.95, None)
    assert told() == [greedy]
    monkeypatch.setattr(current_platform, "is_cuda", lambda: True)
    assert told() == [greedy, drawn]
