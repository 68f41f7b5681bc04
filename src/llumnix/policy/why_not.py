"""Why does nothing move? Nobody decides that: a request stays where no rule moves it, and this says which.

Asked of a request, of an instance, or of the whole cluster, by what front ends know: the snapshots of the instances,
and whom the last round of pairing turned down.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llumnix.config import PolicyConfig
from llumnix.policy.catalogue import find_policy
from llumnix.policy.pairing import Rejection
from llumnix.policy.roles import leaver_of, takes_prompts, why_no_home
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, RequestSnapshot
from llumnix.types import InstanceId, InstanceState, RequestState, Role

_MOST_NAMED = 4
"""Pairs that a sentence names."""


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """A request, and what is known of where it is."""

    request: RequestSnapshot
    moved_ago_s: float | None
    """Since it, or an attempt to move it, last came to an end; None: it never was to move."""
    instance: InstanceSnapshot
    cluster: tuple[InstanceSnapshot, ...] = ()
    """All that serve."""


def why_not_moved(
    there: Whereabouts, config: PolicyConfig, rejected: Sequence[Rejection], scheduler_answers: bool = True
) -> str:
    """The first rule that keeps it where it is. `rejected`: of the last round of pairing."""
    request, instance = there.request, there.instance
    policy = find_policy(config.policy)
    if request.why_pinned:
        return f"it cannot move: {request.why_pinned}"
    if request.state is RequestState.MIGRATING:
        return "it is moving just now"
    if _makes_its_tokens_elsewhere(instance) and request.state is RequestState.RUNNING:
        no_rule = _no_rule(config, scheduler_answers)
        return no_rule or _why_no_home(instance, request.needed_blocks, there.cluster)
    if why := _gives_nothing(instance, config, scheduler_answers, rejected):
        return why
    if there.moved_ago_s is not None and there.moved_ago_s < config.request_cooldown_s:
        least = f"{config.request_cooldown_s:g} s (--request-cooldown-s)"
        return f"it was to move {there.moved_ago_s:.2g} s ago, and is left alone for {least}"
    if not _gives_by_pace(instance, rejected) and (
        kept := policy.victim.keeps_now(queued=instance.waiting > 0)(request)
    ):
        return f"{instance.id} gives requests away, but none that is {kept}"
    another = f"{instance.id} gives requests away; another one goes first, by the rule {policy.victim.name!r}"
    return _turned_down([instance.id], rejected) or another


def why_instance_keeps_all(
    instance: InstanceSnapshot,
    config: PolicyConfig,
    rejected: Sequence[Rejection],
    scheduler_answers: bool = True,
    cluster: Sequence[InstanceSnapshot] = (),
) -> str:
    """Why none of its requests leaves it, or that they do; and what its role keeps from it."""
    if _makes_its_tokens_elsewhere(instance) and instance.to_decode and not _no_rule(config, scheduler_answers):
        keeps = _why_no_home(instance, _blocks_to_decode(instance), cluster)
    else:
        keeps = _gives_nothing(instance, config, scheduler_answers, rejected) or _turned_down([instance.id], rejected)
    return (keeps or f"{instance.id} gives requests away") + _spared_by_its_role(instance)


def why_nothing_moves(
    cluster: ClusterSnapshot, config: PolicyConfig, rejected: Sequence[Rejection], scheduler_answers: bool = True
) -> str:
    """Why no request moves from one instance to another, or that one does."""
    policy = find_policy(config.policy)
    for instance in cluster.instances:
        if instance.state is InstanceState.DRAINING and instance.running + instance.waiting:
            return _gives_nothing(instance, config, scheduler_answers, rejected)
    if why := _no_rule(config, scheduler_answers):
        return why
    assert policy.pairing is not None
    serving = [instance for instance in cluster.instances if instance.state is InstanceState.RUNNING]
    if len(serving) < 2:
        return f"{len(serving) or 'no'} instance takes requests: there is nowhere to move to"
    for instance in serving:
        if _makes_its_tokens_elsewhere(instance) and instance.to_decode:
            return _why_no_home(instance, _blocks_to_decode(instance), serving)
    terms = policy.pairing_terms(config)
    pairing = policy.pairing(cluster, terms)
    givers = dict.fromkeys([*(pair.source for pair in pairing.pairs), *(no.source for no in pairing.rejected)])
    if not givers:
        least, lowest = min((policy.freeness(each, terms.priority_target_tokens), each.id) for each in serving)
        limit = f"{terms.migrate_out_freeness:.4g} (--migrate-out-freeness)"
        return f"no instance gives requests away: the lowest freeness, {least:.4g} of {lowest}, is not below {limit}"
    if why := _turned_down(list(givers), rejected):
        return why
    if pairing.pairs:
        first = pairing.pairs[0]
        return f"something is to move from {first.source} to {first.target}: {first}"
    return _turned_down(list(givers), pairing.rejected)


def _no_rule(config: PolicyConfig, scheduler_answers: bool) -> str:
    """Why no pairing takes place at all; empty if it does."""
    if find_policy(config.policy).pairing is None:
        return f"nothing moves by itself with --policy {config.policy}"
    if not config.migration:
        return "nothing moves by itself: --no-migration"
    return "" if scheduler_answers else "the scheduler, which says who gives requests to whom, does not answer"


def _makes_its_tokens_elsewhere(instance: InstanceSnapshot) -> bool:
    """Requests of this one leave it with their first token, whoever is free."""
    return instance.role is Role.PREFILL and instance.state is InstanceState.RUNNING


def _blocks_to_decode(giver: InstanceSnapshot) -> int:
    return -(-giver.to_decode_blocks // giver.to_decode)


def _why_no_home(giver: InstanceSnapshot, blocks: int, cluster: Sequence[InstanceSnapshot]) -> str:
    """Why who runs on an instance for prompts does not make its tokens elsewhere, or that it is about to."""
    others = [one for one in cluster if one.state is InstanceState.RUNNING and one.id != giver.id]
    if all(one.role is Role.PREFILL for one in others):
        return f"{giver.id} is for prompts, and there is no other instance that takes requests and makes tokens"
    leaver = leaver_of(giver, blocks)
    whys = {one.id: why_no_home(one, 1, leaver, max_incoming=one.max_running) for one in others}
    if None in whys.values():
        return f"{giver.id} is for prompts: what runs there leaves it with its first token"
    named = "; ".join(f"{name}: {why}" for name, why in list(whys.items())[:_MOST_NAMED])
    more = f"; and {len(whys) - _MOST_NAMED} more" if len(whys) > _MOST_NAMED else ""
    return f"{giver.id} is for prompts, and nobody takes those that make tokens: {named}{more}"


def _spared_by_its_role(instance: InstanceSnapshot) -> str:
    """What does not come to it, whoever is full."""
    if instance.role is Role.PREFILL:
        return "; none that makes tokens moves to it, for it is for prompts"
    if not takes_prompts(instance):
        return "; it takes prompts only where no other can, for it is for tokens, without --tpot-target-ms"
    return ""


def _gives_nothing(
    instance: InstanceSnapshot, config: PolicyConfig, scheduler_answers: bool, rejected: Sequence[Rejection]
) -> str:
    """Why pairing does not look for a target for it; empty if it does."""
    policy = find_policy(config.policy)
    if instance.state is InstanceState.DRAINING and policy.pairing is not None:
        return f"{instance.id} drains: what it has moves as soon as there is room for it, or ends before"
    if why := _no_rule(config, scheduler_answers):
        return why
    assert policy.pairing is not None
    if _gives_by_pace(instance, rejected):
        return ""
    terms = policy.pairing_terms(config)
    # Whoever is to give, for whatever reason, is turned down where there is nobody else.
    if policy.pairing(ClusterSnapshot(at=0.0, instances=(instance,)), terms).rejected:
        return ""
    freeness = policy.freeness(instance, terms.priority_target_tokens)
    limit = f"{terms.migrate_out_freeness:.4g} (--migrate-out-freeness)"
    return f"{instance.id} gives nothing away: its freeness {freeness:.4g} is not below {limit}"


def _gives_by_pace(instance: InstanceSnapshot, rejected: Sequence[Rejection]) -> bool:
    """It is a straggler, whatever its memory; nobody took what it would have given in the last round."""
    return any(no.by_pace and no.source == instance.id for no in rejected)


def _turned_down(givers: Sequence[InstanceId], rejected: Sequence[Rejection]) -> str:
    """What the last round said of them; empty if nothing."""
    ours = [rejection for rejection in rejected if rejection.source in givers]
    if not ours:
        return ""
    who = ours[0].source if len(givers) == 1 else f"{len(givers)} instances"
    more = f"; and {len(ours) - _MOST_NAMED} more" if len(ours) > _MOST_NAMED else ""
    said = "; ".join(map(str, ours[:_MOST_NAMED]))
    return f"{who} would give a request away, and in the last round could not: {said}{more}"
