"""Which instances exchange a request in the paper's published experiments: by rank, untested."""

from __future__ import annotations

from llumnix.policy.pairing import (
    Pair,
    PairingRound,
    PairingTerms,
    Rejection,
    Why,
    freest,
    gives,
    least_free,
    serving,
)
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.policy.victim import Wanted
from llumnix.policy.virtual_usage import paper_migration_freeness


def pair_by_rank(cluster: ClusterSnapshot, terms: PairingTerms) -> PairingRound:
    """As in the paper's experiments: the i-th least free with the i-th freest, whoever is busy sits out."""
    ranked = [
        (paper_migration_freeness(instance, terms.priority_target_tokens), instance) for instance in serving(cluster)
    ]
    sources = [entry for entry in ranked if gives(entry, terms)]
    targets = [entry for entry in ranked if not entry[1].preempted and entry[0] > terms.migrate_in_freeness]
    sources.sort(key=least_free)
    targets.sort(key=freest)
    rejected = [Rejection(source.id, None, Why.NO_TARGET) for _, source in sources[len(targets) :]]
    pairs: list[Pair] = []
    for (source_freeness, source), (target_freeness, target) in zip(sources, targets, strict=False):
        why = _sits_out(source, target, terms)
        if why is not None:
            rejected.append(Rejection(source.id, target.id, why))
            continue
        pair = Pair(
            source=source.id,
            target=target.id,
            wanted=Wanted(room_blocks=target.total_blocks),
            source_freeness=source_freeness,
            target_freeness=target_freeness,
            preempted=source.preempted,
        )
        pairs.append(pair)
    return PairingRound(tuple(pairs), tuple(rejected))


def _sits_out(source: InstanceSnapshot, target: InstanceSnapshot, terms: PairingTerms) -> Why | None:
    if source.outgoing >= terms.max_migrations:
        return Why.SOURCE_BUSY
    if target.incoming >= terms.max_migrations:
        return Why.TARGET_BUSY
    if source.id in terms.empty_handed:
        return Why.EMPTY_HANDED
    return Why.BACKING_OFF if (source.id, target.id) in terms.backing_off else None
