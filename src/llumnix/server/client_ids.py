"""From the ids inside the engines to the id that the client was given.

vLLM 0.32 names the sequences of one HTTP request after it: prompt `i` of a completion is `<id>-<i>`
(entrypoints/openai/completion/serving.py), sequence `k` of n > 1 is `<k>_<id>` (v1/engine/parallel_sampling.py).
"""

from __future__ import annotations

import re

_SEQUENCE = re.compile(r"\A\d+_")
_PROMPT = re.compile(r"\A(cmpl-.+)-\d+\Z")


def client_visible_id(external_id: str) -> str:
    plain = _SEQUENCE.sub("", external_id)
    completion = _PROMPT.match(plain)
    return completion.group(1) if completion else plain
