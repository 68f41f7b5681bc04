"""Bodies of the routes that ask a server what would have been otherwise, of what it recorded."""

from __future__ import annotations

from typing import Any

import msgspec

MOST_ALTERNATIVES = 8
BEGUN = "\n"
"""What a run says first, to the front end that started it; else a sentence that says why it does not begin."""


class WhatIfBody(msgspec.Struct, frozen=True, kw_only=True):
    tries: list[str]
    """Alternatives, as `llumnix whatif --try` takes them: `instances=6`, `policy=infaas++,migration=off`. Without any
    it is only said how far a simulation of what was can be believed. At most 8, of a range each number."""


class WhatIfRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of `llumnix whatif` that the server was asked for."""

    tries: list[str]
    folder: str
    """What was recorded, on the server's machine."""
    command: str
    """That does the same elsewhere."""
    began_at_s: float = msgspec.field(name="began_at")
    """Seconds since 1970."""
    total: int = 0
    """Simulations."""
    done: int = 0
    problem: str | None = None
    """Why it came to nothing, in one sentence."""
    found: dict[str, Any] | None = None
    """What `llumnix whatif --out` writes to whatif.json, once it is done."""


class WhatIfAnswer(msgspec.Struct, frozen=True, kw_only=True):
    running: bool
    run: WhatIfRun | None
    """The one that runs, or else the last one. Null: none has since the server began."""
