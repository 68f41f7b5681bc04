"""From the ids inside the engines to the id that the client was given.

vLLM 0.32 names the sequences of one HTTP request after it:

* prompt `i` of a completion `<id>-<i>` (entrypoints/openai/completion/serving.py), also of what is pooled
  (pooling/base/serving.py) or asked about labels (generate/label_reads.py); chunk `j` of a long one to embed
  `<id>-prompt-<i>-chunk-<j>` (pooling/embed/io_processor.py)
* conversation `i` of a batch of chats `<id>_<i>` (chat_completion/batch_serving.py), turn `i` of a response likewise
  (responses/serving.py)
* chunk `i` of a recording that has several `<id>-<i>`, the look at its language `<id>-lang_detect`
  (speech_to_text/base/serving.py)
* sequence `k` of n > 1 `<k>_<id>` (v1/engine/parallel_sampling.py)
* beam `i` in a step `<id>-<random>-beam-<i>`, `<id>` as above (generate/beam_search/online.py)
"""

from __future__ import annotations

import re

_NUMBERED = "cmpl|embd|classify|score|pooling|generative-scoring|decision"
_RECORDINGS = "transcribe|translate"

_SEQUENCE = re.compile(r"\A\d+_")
BEAM = re.compile(r"-[0-9a-f]{16}-beam-\d+\Z")
"""Ends the id of a request of vLLM's beam search."""
_PROMPT = re.compile(rf"\A((?:{_NUMBERED})-.+?)-(?:prompt-\d+-chunk-)?\d+\Z", re.DOTALL)
_LANGUAGE = re.compile(rf"\A((?:{_RECORDINGS})-.+)-lang_detect\Z", re.DOTALL)
_CHUNK = re.compile(rf"\A((?:{_RECORDINGS})-[0-9a-f]{{16}})-\d+\Z")
_CHAT_OF_BATCH = re.compile(r"\A(chatcmpl-[0-9a-f]{16})_\d+\Z")
"""This one and the chunk: with vLLM's own random id. One that the client chose may itself end in a number."""
_TURN = re.compile(rf"\A(?!(?:{_NUMBERED}|{_RECORDINGS}|chatcmpl|generate-tokens)-)(.+)_\d+\Z", re.DOTALL)
"""The client may choose the whole id of a response."""
_PARTS = (_PROMPT, _LANGUAGE, _CHUNK, _CHAT_OF_BATCH, _TURN)


def client_visible_id(external_id: str) -> str:
    whole = BEAM.sub("", _SEQUENCE.sub("", external_id))
    named = next(filter(None, (part.match(whole) for part in _PARTS)), None)
    return named.group(1) if named else whole


def is_text(value: str) -> bool:
    """Half of a UTF-16 pair, which JSON can have in it, can be sent to nobody, so no id has it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
