"""Numbers of questions and orders of a front end."""

from __future__ import annotations

import itertools
import secrets


def numbers() -> itertools.count[int]:
    """From a random one on: a front end has the address of the one that died before it, and late answers to that one's
    questions must find nobody."""
    return itertools.count(secrets.randbelow(1 << 62))
