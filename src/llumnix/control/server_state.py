"""What the server as a whole is in, apart from its requests: paused, asleep, being profiled, which adapters it has.

vLLM keeps this once per process. Here many processes share it, and more come later: so it is one value with a version,
whose changes have one order (engine/vllm/front_end/state_file.py), and whatever joins is brought to it.
"""

from __future__ import annotations

from typing import Any

import msgspec

_TAGS = {"weights", "kv_cache", "scheduling"}  # of what is woken up; vLLM leaves others alone
_LEVELS_OF_MEMORY = 1  # from this level of sleep on the engine gives memory away; below it only pauses


class Op(msgspec.Struct, frozen=True):
    """A call of the engine core's, by its name there."""

    name: str
    args: tuple[Any, ...] = ()


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter. Its id is never used for another one: engines keep weights under it."""

    id: int
    name: str
    path: str
    base_model_name: str | None = None
    is_3d_lora_weight: bool = False
    generation: int = 0
    """Grows when it is loaded anew in place."""


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    version: int = 0
    op: Op | None = None
    """What made this version: every instance that had the one before does it once."""
    activity: tuple[Op, ...] = ()
    """What brings an instance that has just started to where the others are; empty while the server serves."""
    sleep_level: int | None = None
    """How deep it sleeps: 0 if its weights stay, 1 if they are kept aside, 2 if they are lost. None: it is awake, even
    if it is paused."""
    profile: Op | None = None
    """How profiling was started, while it lasts."""
    adapters: tuple[Adapter, ...] | None = None
    """None: no front end has told yet with which ones it was started."""
    last_adapter_id: int = 0

    @property
    def paused(self) -> bool:
        """Whether requests wait."""
        return any(_pauses(op) for op in self.activity) and not any(
            op.name == "resume_scheduler" for op in self.activity
        )

    @property
    def asleep(self) -> bool:
        return self.paused or any(_gives_memory(op) for op in self.activity)


def _pauses(op: Op) -> bool:
    return op.name in ("pause_scheduler", "sleep")


def _gives_memory(op: Op) -> bool:
    return op.name == "release_kv_cache_memory" or (op.name == "sleep" and op.args[0] >= _LEVELS_OF_MEMORY)


def after(state: ServerState, op: Op) -> ServerState:
    """The next version, which `op` makes."""
    profile = state.profile
    if op.name == "profile":
        profile = op if op.args[0] else None
    activity = _activity_after(state.activity, op)
    level = _level_after(state.sleep_level, op, activity)
    return _next(state, op=op, activity=activity, sleep_level=level, profile=profile)


def _level_after(level: int | None, op: Op, activity: tuple[Op, ...]) -> int | None:
    if not any(each.name == "sleep" or _gives_memory(each) for each in activity):
        return None
    return max(level or 0, op.args[0] if op.name == "sleep" else 0)


def _activity_after(activity: tuple[Op, ...], op: Op) -> tuple[Op, ...]:
    deep = any(_gives_memory(each) for each in activity)
    match op.name:
        case "pause_scheduler" | "resume_scheduler" | "sleep" if not deep and not _gives_memory(op):
            return () if op.name == "resume_scheduler" else (op,)
        case "sleep" if not deep:
            # Those that come later keep their weights aside: nobody will tell them to load what a deeper sleep drops.
            return (Op("sleep", (_LEVELS_OF_MEMORY, op.args[1])),)
        case "pause_scheduler" | "resume_scheduler" | "sleep":
            # Memory that was given away stays so until the server is woken up; only whether requests wait changes.
            kept = tuple(each for each in activity if each.name not in ("pause_scheduler", "resume_scheduler"))
            pause = Op("pause_scheduler", (op.args[1], True)) if op.name == "sleep" else op
            return (*kept, pause)
        case "wake_up":
            tags = op.args[0] if op.args else None
            if tags is None:
                return ()
            return activity if set(tags) - _TAGS else (*(each for each in activity if each != op), op)
        case "release_kv_cache_memory":
            return activity if op in activity else (*activity, op)
        case _:
            return activity


def awake(state: ServerState) -> ServerState:
    """All of its memory is there again: found out by those that were woken up part by part."""
    return _next(state, op=None, activity=(), sleep_level=None)


def undone(state: ServerState, before: ServerState) -> ServerState:
    """The last change failed somewhere: back to what was `before`, as the next version."""
    activity, level = before.activity, before.sleep_level
    return _next(state, op=None, activity=activity, sleep_level=level, profile=before.profile)


def with_adapters(state: ServerState, adapters: tuple[Adapter, ...]) -> ServerState:
    last = max((adapter.id for adapter in adapters), default=0)
    return _next(state, op=None, adapters=adapters, last_adapter_id=max(last, state.last_adapter_id))


def with_adapter_id_taken(state: ServerState, adapter_id: int) -> ServerState:
    """An adapter may be in engines under this id, whatever becomes of it. No new version: nobody has to do anything."""
    return msgspec.structs.replace(state, last_adapter_id=max(adapter_id, state.last_adapter_id))


def _next(state: ServerState, **changes: Any) -> ServerState:
    return msgspec.structs.replace(state, version=state.version + 1, **changes)


class Applied(msgspec.Struct, frozen=True):
    """An instance's answer to a `ServerState`."""

    result: Any
    """Of the version's `op`."""
    lacks: tuple[int, ...]
    """Adapters that could not be loaded there."""
