"""One place of vLLM that the adapter relies on, and the versions that it is for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llumnix.vllm_words import SUPPORTED

VllmRelease = tuple[int, int]
"""0.32 is (0, 32)."""


def release_of(version: str) -> VllmRelease:
    """Raises ValueError for what is no version."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


OLDEST = release_of(SUPPORTED[0])


@dataclass(frozen=True, slots=True)
class Hook:
    where: str
    """module:qualified.name"""
    parameters: str
    """Leading parameter names, as called or overridden; other parameters must have defaults."""
    used_for: str
    by_name: tuple[str, ...] = ()
    """Further required parameters, always given by name."""
    since: VllmRelease = OLDEST
    """The first version in which it is relied on."""
    until: VllmRelease | None = None
    """The first one in which it is not any more."""

    def concerns(self, release: VllmRelease) -> bool:
        return self.since <= release and (self.until is None or release < self.until)


def of(owner: str, *hooks: Hook) -> tuple[Hook, ...]:
    """Hooks of one module (`module:`) or class (`module:Name.`), told by their own names."""
    return tuple(replace(hook, where=owner + hook.where) for hook in hooks)
