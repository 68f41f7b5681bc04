"""Soft roles: some instances are preferred for prompts, others for making tokens, and the rest does both.

A step that computes a part of a prompt keeps all that decode in it waiting. So a request may have its prompt computed
on one instance and, once it has its first token, go on at another: it migrates like any request. Roles are
preferences: an instance for prompts goes on making the tokens of whom nobody takes, and one for tokens computes a
prompt if it is sooner with what its target leaves of each step.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from llumnix.policy.demand import tokens_in
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.policy.step_cost import next_step_s, token_s
from llumnix.policy.victim import Wanted
from llumnix.policy.virtual_usage import room_blocks
from llumnix.types import InstanceId, InstanceState, Role


def takes_prompts(instance: InstanceSnapshot) -> bool:
    """Those for tokens have a target that says how much of prompts they can compute beside them; without one, nothing
    keeps a prompt from being in the way."""
    return instance.role is not Role.DECODE or instance.tpot_target_s > 0


class NoHome(StrEnum):
    """Why an instance takes nobody who is to make tokens elsewhere."""

    FOR_PROMPTS = "for prompts, too"
    SHORT = "short of blocks itself"
    STANDS_STILL = "its engine stands still"
    BUSY = "it takes as many requests as it may"
    LATE = "tokens would come later than its target"
    NO_ROOM = "no room beside those that it has"


class Home(msgspec.Struct, frozen=True, kw_only=True):
    """Who may go on at `target`; `str(home)` is the reason."""

    target: InstanceId
    wanted: Wanted
    token_s: float | None
    """Between two tokens there, with them; None: not known."""
    here_s: float | None
    """The next step where they are."""

    def __str__(self) -> str:
        if self.token_s is None or self.here_s is None:
            return f"tokens are made at {self.target}, where {self.wanted.room_blocks} blocks are kept for them"
        there, here = f"{self.token_s * 1e3:.3g} ms a token at {self.target}", f"{self.here_s * 1e3:.3g} ms a step here"
        return f"tokens are made elsewhere: {there}, {here}"


class Leaver(msgspec.Struct, frozen=True):
    """A request that is to make its tokens elsewhere: so much it takes there."""

    blocks: int
    tokens: int


class HomeTerms(msgspec.Struct, frozen=True, kw_only=True):
    moves: int
    """How many requests may be sent off now."""
    max_incoming: int
    """Migrations that an instance may have coming in."""
    backing_off: Container[tuple[InstanceId, InstanceId]] = frozenset()


def find_homes(giver: InstanceSnapshot, takers: Iterable[InstanceSnapshot], terms: HomeTerms) -> tuple[Home, ...]:
    """Where the requests of an instance for prompts make their tokens: dealt one by one to the instance where tokens
    then come fastest, of those that have room and whose target is still met; to one for tokens before a mixed one. Whom
    nobody can take stays."""
    if not giver.to_decode or giver.state is not InstanceState.RUNNING:
        return ()
    leaver = leaver_of(giver, -(-giver.to_decode_blocks // giver.to_decode))
    able = {
        taker.id: taker
        for taker in takers
        if taker.state is InstanceState.RUNNING and (giver.id, taker.id) not in terms.backing_off
    }
    cost = next((taker.step_cost for taker in able.values() if taker.step_cost is not None), giver.step_cost)
    dealt = dict.fromkeys(able, 0)
    for _ in range(min(giver.to_decode, terms.moves)):
        best = min(
            (
                _rank(taker, dealt[name] + 1, leaver, cost)
                for name, taker in able.items()
                if why_no_home(taker, dealt[name] + 1, leaver, terms.max_incoming) is None
            ),
            default=None,
        )
        if best is None:
            break
        dealt[best[-1]] += 1
    here_s = next_step_s(giver)
    return tuple(
        Home(
            target=name,
            wanted=Wanted(
                count=count, room_blocks=min(giver.to_decode_blocks, _spare_blocks(able[name])), to_decode=True
            ),
            token_s=_token_s(able[name], count, leaver),
            here_s=here_s,
        )
        for name, count in dealt.items()
        if count
    )


def leaver_of(giver: InstanceSnapshot, blocks: int) -> Leaver:
    """One of so many blocks, as the giver counts them."""
    return Leaver(blocks, tokens_in(blocks, giver))


def _rank(
    taker: InstanceSnapshot, count: int, leaver: Leaver, cost: StepCost | None
) -> tuple[bool, float, int, InstanceId]:
    """The lowest takes the next one. Where no prompts are computed nothing tells what steps cost there (as
    `control/step_fit.py` says): they are taken to `cost` what they do elsewhere. While nobody knows, load decides."""
    alike = replace(taker, step_cost=cost) if taker.step_cost is None else taker
    load = taker.running + taker.incoming + count
    return taker.role is not Role.DECODE, _token_s(alike, count, leaver) or 0.0, load, taker.id


def why_no_home(taker: InstanceSnapshot, count: int, leaver: Leaver, max_incoming: int) -> NoHome | None:
    """Why so many such requests cannot make their tokens at this one, which serves."""
    if taker.role is Role.PREFILL:
        return NoHome.FOR_PROMPTS
    if taker.stands_still:
        return NoHome.STANDS_STILL
    if taker.preempted or taker.short_blocks:
        return NoHome.SHORT
    if taker.incoming + count > max_incoming or taker.running + taker.incoming + count > taker.max_running:
        return NoHome.BUSY
    token = _token_s(taker, count, leaver)  # nobody is turned down for what steps cost elsewhere
    if taker.tpot_target_s and token is not None and token > taker.tpot_target_s:
        return NoHome.LATE
    return NoHome.NO_ROOM if _spare_blocks(taker) < count * leaver.blocks else None


def _spare_blocks(taker: InstanceSnapshot) -> int:
    """With one left for each request of its own, which grow."""
    return room_blocks(taker) - taker.running


def _token_s(taker: InstanceSnapshot, count: int, leaver: Leaver) -> float | None:
    """Seconds between two tokens there with so many more requests, those counted that are on their way in."""
    more = count + taker.incoming
    return token_s(taker, more=more, tokens=more * leaver.tokens)
