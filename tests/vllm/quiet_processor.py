"""A logits processor of somebody's own: whoever asks for it does not hear a token again within the next few."""

from __future__ import annotations

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, RequestLogitsProcessor  # type: ignore[attr-defined]

FEW = 12


class QuietProcessor(AdapterLogitsProcessor):
    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        return _without_the_last if (params.extra_args or {}).get("quiet") else None


def _without_the_last(output: list[int], logits: torch.Tensor) -> torch.Tensor:
    logits[output[-FEW:]] = -torch.inf
    return logits
