"""One place of vLLM that the adapter relies on, and the version that it is for."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.vllm_words import VERSION

SUPPORTED = VERSION.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Hook:
    where: str
    """module:qualified.name"""
    parameters: str
    """Leading parameter names, as called or overridden; other parameters must have defaults."""
    used_for: str
    by_name: tuple[str, ...] = ()
    """Further required parameters, always given by name."""
