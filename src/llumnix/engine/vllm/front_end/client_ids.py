"""From the ids inside the engines to the id that the client was given.

vLLM 0.32 names the sequences of one HTTP request after it: prompt `i` of a completion is `<id>-<i>`
(entrypoints/openai/completion/serving.py), conversation `i` of a batch of chats `<id>_<i>` (chat_completion/
batch_serving.py), turn `i` of a response `<id>_<i>` (responses/serving.py), sequence `k` of n > 1 is `<k>_<id>`
(v1/engine/parallel_sampling.py).
"""

from __future__ import annotations

import re

_SEQUENCE = re.compile(r"\A\d+_")
_PROMPT = re.compile(r"\A(cmpl-.+)-\d+\Z")
_CHAT_OF_BATCH = re.compile(r"\A(chatcmpl-[0-9a-f]{16})_\d+\Z")
"""With vLLM's own random id. One that the client chose may itself end in a number."""
_TURN = re.compile(r"\A(?!chatcmpl-|cmpl-|generate-tokens-)(.+)_\d+\Z")
"""The client may choose the whole id of a response."""


def client_visible_id(external_id: str) -> str:
    plain = _SEQUENCE.sub("", external_id)
    named = _PROMPT.match(plain) or _CHAT_OF_BATCH.match(plain) or _TURN.match(plain)
    return named.group(1) if named else plain


def is_text(value: str) -> bool:
    """Half of a UTF-16 pair, which JSON can have in it, can be sent to nobody, so no id has it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
