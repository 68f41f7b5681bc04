"""Who starts first of those that wait at an instance: who needs little of its memory anew, within bounds.

Memory is what most wait for. A queue in order of arrival stands behind its first, which may need a quarter of the cache
(a request that was preempted needs all that it had) while many behind it would find room at once. Shortest first mends
that and lets long ones starve; so here a request gives way to those that come later by no more than `LETS_PASS_S` times
its share of the instance's memory, less theirs. One that was preempted has had its turn: it waits since then, not since
it came, and lets fewer pass. One whose instance died was robbed of its turn: it lets nobody pass.

What a request has cached counts as nothing: it needs no computing, and if it waits, others push it out. What one before
it in the queue is still to compute does count: who begins as that one does would overtake it, only to compute it.
"""

from __future__ import annotations

LETS_PASS_S = 300.0
"""Who needs the whole memory lets those pass that come so much later and need next to nothing; who needs a hundredth of
it, those that come three seconds later."""

PREEMPTED_LETS_PASS_S = 100.0
"""The same for one that was preempted: nothing is worse than standing still between two tokens, for long outputs above
all, which grow until they need much."""

GROWTH_STEPS = 16
"""Whoever waits starts where memory lasts for so many steps of those that run: an engine lets in whatever fits this
very moment, and preempts it soon after."""


def turn_s(
    came_s: float, needed_blocks: int, total_blocks: int, *, preempted_s: float | None = None, made_tokens: int = 0
) -> float:
    """Lowest first, of requests of one priority. `needed_blocks`: beside those that it has cached. `preempted_s`: when,
    if it has not made a token since."""
    if preempted_s is None and made_tokens:
        return came_s  # its instance died
    share = min(1.0, needed_blocks / max(1, total_blocks))
    return came_s + LETS_PASS_S * share if preempted_s is None else preempted_s + PREEMPTED_LETS_PASS_S * share
