"""Why does a request not move? Nobody decides that it stays: it stays where no rule moves it, and this says which."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llumnix.config import PolicyConfig
from llumnix.policy.catalogue import find_policy
from llumnix.policy.pairing import Rejection
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, RequestSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import InstanceState, RequestState


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """A request, and what is known of where it is."""

    request: RequestSnapshot
    why_pinned: str
    """Empty: it could move."""
    moved_ago_s: float | None
    """Since it, or an attempt to move it, last came to an end; None: it never was to move."""
    instance: InstanceSnapshot


def why_not_moved(
    settled: Settled, config: PolicyConfig, rejected: Sequence[Rejection], scheduler_answers: bool = True
) -> str:
    """The first rule that keeps it where it is. `rejected`: of the last round of pairing."""
    request, instance = settled.request, settled.instance
    policy = find_policy(config.policy)
    if settled.why_pinned:
        return f"it cannot move: {settled.why_pinned}"
    if request.state is RequestState.MIGRATING:
        return "it is moving just now"
    if policy.pairing is None:
        return f"nothing moves by itself with --policy {config.policy}"
    if instance.state is InstanceState.DRAINING:
        return f"{instance.id} drains: it moves as soon as an instance has room for it, or comes to its end before"
    if not config.migration:
        return "nothing moves by itself: --no-migration"
    if not scheduler_answers:
        return "the scheduler, which says who gives requests to whom, does not answer"
    terms = policy.pairing_terms(config)
    if not policy.pairing(ClusterSnapshot(at=0.0, instances=(instance,)), terms).rejected:
        freeness = migration_freeness(instance, terms.priority_target_tokens)
        limit = f"{terms.migrate_out_freeness:.4g} (--migrate-out-freeness)"
        return f"{instance.id} gives nothing away: its freeness {freeness:.4g} is not below {limit}"
    if settled.moved_ago_s is not None and settled.moved_ago_s < config.request_cooldown_s:
        least = f"{config.request_cooldown_s:g} s (--request-cooldown-s)"
        return f"it was to move {settled.moved_ago_s:.2g} s ago, and is left alone for {least}"
    if why := policy.victim.keeps_now(queued=instance.waiting > 0)(request):
        return f"{instance.id} gives requests away, but none that is {why}"
    ours = [rejection for rejection in rejected if rejection.source == instance.id]
    if ours:
        return f"{instance.id} would give a request away, and in the last round could not: {'; '.join(map(str, ours))}"
    return f"{instance.id} gives requests away; another one goes first, by the rule {policy.victim.name!r}"
