"""What the families are asked, by the names of `frame.kinds`: where two runs with one seed must say the same."""

from __future__ import annotations

from frame.kinds import ADAPTED, FILMED, HEARD, KINDS, PICTURED, REPETITIVE

TEXT = tuple(KINDS)

COMPLETIONS = tuple(kind for kind in KINDS if not kind.startswith("chat"))
"""For models whose chats have a form of their own."""

SEVERAL = ("n = 2 seeded", "three prompts")
"""Several sequences at once."""

_WORDS_ALONE = ("greedy", "chat", "seeded top_p")

IMAGES = (*PICTURED, *_WORDS_ALONE)

VIDEOS = (*FILMED, *IMAGES)

AUDIO = (*HEARD, *_WORDS_ALONE)

WITH_ADAPTERS = (*ADAPTED, "greedy", "seeded top_p")
"""Of two, and without any."""

DRAFTED = (
    *("greedy", "penalties", "stop string", "regex", "json schema", "choice", "grammar"),
    *("three prompts", "chat", "chat tool", "long prompt", "cached prefix", *REPETITIVE),
)
"""Nothing seeded: how often vLLM draws for a token depends on how many guesses came before it. And nothing that vLLM
refuses beside drafts: min_p, min_tokens and logit_bias."""

_CONSTRAINED = ("regex", "json schema", "choice", "grammar", "chat tool", "refrain")

DRAFTED_FREELY = tuple(kind for kind in DRAFTED if kind not in _CONSTRAINED)
"""And nothing whose grammar rejects drafts before they are computed."""
