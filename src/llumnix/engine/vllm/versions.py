"""What differs between the versions of vLLM that are supported: the only place that asks which one it is.

Which names exist in which version says the list of hooks (`since` and `until` in a `hooks.py` of each side).
"""

from __future__ import annotations

import importlib
from typing import Any

import vllm
from vllm.utils.torch_utils import set_random_seed

from llumnix.engine.vllm.hook import release_of

RELEASE = release_of(vllm.__version__)

ONE_INTEGER = RELEASE >= (0, 32)
"""Whether on CPUs the sampler draws one integer for a token with a seed. 0.31 draws a number for every word."""


def command_line() -> Any:
    """The module with `make_arg_parser` and `validate_parsed_serve_args`. Takes long to import."""
    folder = "common" if RELEASE >= (0, 33) else "launchers"
    return importlib.import_module(f"vllm.entrypoints.{folder}.cli_args")


def accepted_in_turn(peer_loads: tuple[Any, int] | None) -> dict[str, Any]:
    """Arguments of `serve_http`: how many connections each front end has, so that the least loaded one takes the next.
    In 0.31 whoever is first takes it."""
    return {"peer_loads": peer_loads} if RELEASE >= (0, 32) else {}


def not_zeroed(groups: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of `KVCacheManager.allocate_slots`: KV cache groups whose new blocks are filled from outside. 0.31
    cannot be told."""
    return {"skip_zeroing_group_ids": groups} if RELEASE >= (0, 32) else {}


def draw_apart(seed: int, index: int) -> None:
    """Has this process draw as vLLM's data parallel rank `index` does; 0.31 has all of them draw alike."""
    if RELEASE >= (0, 32):
        set_random_seed(seed, index)
    elif index:
        from numpy.random import SeedSequence

        set_random_seed(int(SeedSequence((seed, index)).generate_state(1)[0]))
    else:
        set_random_seed(seed)
