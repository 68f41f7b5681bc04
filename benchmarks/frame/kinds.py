"""Requests of every kind that can move: what a client may ask for, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from frame.media import audio, image, video
from frame.stream import CHAT, COMPLETIONS

EOS = "257"  # of the tiny model's byte tokenizer

_WORDS = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "ledge")
_SHARED_PREFIX = " ".join(_WORDS * 9) + ". "
_GRAMMAR = 'root ::= pair pair*\npair ::= [a-z] "-" [0-9] [0-9] ";"'
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 120, "maxLength": 150},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 40, "maxItems": 50},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "measure",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "minLength": 200, "maxLength": 240},
                "depth": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["place", "depth"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    path: str
    body: dict[str, Any]
    stop_after: int = 0
    """If above 0: to be given a stop string that an undisturbed run says at about this character."""

    def shortened(self, most_tokens: int) -> Kind:
        """The same with at most so many tokens, for engines that are slow."""
        body = self.body | {"max_tokens": min(self.body["max_tokens"], most_tokens)}
        if "min_tokens" in body:
            body["min_tokens"] = min(body["min_tokens"], most_tokens // 2)
        return replace(self, body=body, stop_after=min(self.stop_after, most_tokens // 2))


Make = Callable[[random.Random], tuple[str, dict[str, Any]]]


def prompt(rng: random.Random, words: int) -> str:
    return f"{rng.randrange(10**6)} " + " ".join(rng.choices(_WORDS, k=words))


def greedy(seed: int, max_tokens: int, words: int = 40) -> dict[str, Any]:
    """Body of a completion that makes just so many tokens, the same ones each time."""
    text = prompt(random.Random(seed), words)
    return {"prompt": text, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}


def _length(rng: random.Random) -> int:
    return rng.randint(200, 380)


def _completion(rng: random.Random, **fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"prompt": prompt(rng, rng.randint(5, 60)), "max_tokens": _length(rng), "temperature": 0, "ignore_eos": True}
    return COMPLETIONS, body | fields


def _chat(rng: random.Random, **fields: Any) -> tuple[str, dict[str, Any]]:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": prompt(rng, rng.randint(5, 60))},
    ]
    body = {"messages": messages, "max_tokens": _length(rng), "temperature": 0, "ignore_eos": True}
    return CHAT, body | fields


def _sampled(rng: random.Random) -> dict[str, Any]:
    return {"temperature": 1.0, "top_p": 0.9, "seed": rng.randrange(2**31)}


def _constrained(rng: random.Random, **constraint: Any) -> tuple[str, dict[str, Any]]:
    return _completion(rng, structured_outputs=constraint, ignore_eos=False)


def _choices(rng: random.Random) -> list[str]:
    return [" ".join([first, *rng.choices(_WORDS, k=45)]) for first in ("North", "South", "East")]


KINDS: dict[str, Make] = {
    "greedy": _completion,
    "seeded top_p": lambda rng: _completion(rng, **_sampled(rng)),
    "seeded top_k min_p": lambda rng: _completion(
        rng, temperature=1.3, top_k=40, min_p=0.02, seed=rng.randrange(2**31)
    ),
    "penalties": lambda rng: _completion(rng, presence_penalty=0.8, frequency_penalty=0.5, repetition_penalty=1.2),
    "penalties seeded": lambda rng: _completion(rng, frequency_penalty=1.0, repetition_penalty=1.1, **_sampled(rng)),
    "logprobs": lambda rng: _completion(rng, logprobs=3),
    "stop string": lambda rng: _completion(rng, include_stop_str_in_output=bool(rng.getrandbits(1))),
    "min_tokens logit_bias": lambda rng: _completion(
        rng, min_tokens=rng.randint(120, 190), logit_bias={EOS: 100.0}, ignore_eos=False
    ),
    "bad words, allowed tokens": lambda rng: _completion(
        rng, bad_words=["ab", "q"], allowed_token_ids=list(range(40, 220))
    ),
    "regex": lambda rng: _constrained(rng, regex=r"([a-z]{3,7} [0-9]{2,4}, ){22,25}\."),
    "regex seeded": lambda rng: _completion(
        rng, structured_outputs={"regex": r"([a-z]{2,9}=[0-9]{2,5};){20,25}"}, ignore_eos=False, **_sampled(rng)
    ),
    "json schema": lambda rng: _constrained(rng, json=_SCHEMA),
    "choice": lambda rng: _constrained(rng, choice=_choices(rng)),
    "grammar": lambda rng: _constrained(rng, grammar=_GRAMMAR),
    "n = 2 seeded": lambda rng: _completion(rng, n=2, **_sampled(rng)),
    "three prompts": lambda rng: _completion(rng, prompt=[prompt(rng, rng.randint(5, 60)) for _ in range(3)]),
    "chat": _chat,
    "chat logprobs seeded": lambda rng: _chat(rng, logprobs=True, top_logprobs=2, **_sampled(rng)),
    "chat json schema": lambda rng: _chat(
        rng,
        response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": _SCHEMA}},
        ignore_eos=False,
    ),
    "chat tool": lambda rng: _chat(
        rng, tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "measure"}}, ignore_eos=False
    ),
    "long prompt": lambda rng: _completion(rng, prompt=prompt(rng, rng.randint(250, 600))),
    "cached prefix": lambda rng: _completion(rng, prompt=_SHARED_PREFIX + prompt(rng, 10)),
    "high priority": lambda rng: _completion(rng, priority=-1),
}


def _about(rng: random.Random, *parts: Callable[[random.Random], Any], **fields: Any) -> tuple[str, dict[str, Any]]:
    """A chat about what these make."""
    content = [part(rng) for part in parts]
    content.append({"type": "text", "text": prompt(rng, rng.randint(5, 40))})
    return _chat(rng, **{"messages": [{"role": "user", "content": content}]} | fields)


PICTURED: dict[str, Make] = {
    "image": lambda rng: _about(rng, image),
    "image seeded": lambda rng: _about(rng, image, **_sampled(rng)),
    "two images": lambda rng: _about(rng, image, image),
    "image penalties": lambda rng: _about(rng, image, presence_penalty=0.8, repetition_penalty=1.2),
    "image json schema": lambda rng: _about(
        rng,
        image,
        response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": _SCHEMA}},
        ignore_eos=False,
    ),
}
"""For models that look at images: of several sizes and shapes."""

FILMED: dict[str, Make] = {
    "video": lambda rng: _about(rng, video),
    "video seeded": lambda rng: _about(rng, video, **_sampled(rng)),
    "video and image": lambda rng: _about(rng, video, image),
}
"""For those that look at videos, too."""

HEARD: dict[str, Make] = {
    "audio": lambda rng: _about(rng, audio),
    "audio seeded": lambda rng: _about(rng, audio, **_sampled(rng)),
    "two audios": lambda rng: _about(rng, audio, audio),
}
"""For models that listen."""

REPETITIVE: dict[str, Make] = {
    "few words": lambda rng: _completion(rng, allowed_token_ids=rng.sample(range(40, 220), 6)),
    "refrain": lambda rng: _constrained(rng, regex=f"({' '.join(rng.sample(_WORDS, 6))}[0-9]{{1,2}}, ){{10,14}}"),
}
"""What is said again and again, so that guesses from what was said before are often right."""

ADAPTERS = ("north", "south")


def _adapted(rng: random.Random, **fields: Any) -> tuple[str, dict[str, Any]]:
    return _completion(rng, model=rng.choice(ADAPTERS), **fields)


ADAPTED: dict[str, Make] = {
    "adapter": _adapted,
    "adapter seeded": lambda rng: _adapted(rng, **_sampled(rng)),
    "adapter json schema": lambda rng: _adapted(rng, structured_outputs={"json": _SCHEMA}, ignore_eos=False),
    "adapter long prompt": lambda rng: _adapted(rng, prompt=prompt(rng, rng.randint(250, 600))),
}
"""For servers that have LoRA adapters of these names."""

ALL = KINDS | PICTURED | FILMED | HEARD | REPETITIVE | ADAPTED

SHARED = "cached prefix"
"""The kind whose requests may find each other's blocks; all others have a cache of their own each."""

WITH_STOP = "stop string"


def make(kind: str, rng: random.Random) -> Kind:
    path, body = ALL[kind](rng)
    return Kind(kind, path, body, stop_after=170 if kind == WITH_STOP else 0)
