"""What may befall one engine in the middle of a load."""

from __future__ import annotations

from typing import Literal, get_args

Fault = Literal["kill", "stop", "slow", "weak"]
"""SIGKILL; taken away as its operator would (a drain, or SIGTERM where there is none); ten seconds of which it stands
still for each other half; steps that take twice as long until the load is over."""

FAULTS: tuple[Fault, ...] = get_args(Fault)
