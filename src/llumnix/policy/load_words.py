"""One word for how full an instance is, for people who read the number of its freeness beside it.

idle      it has no request
roomy     freeness is above the limit beyond which it takes requests from others
steady    between the two limits, or just there: it neither gives nor takes
tight     below the limit under which it gives requests away: a few blocks of tokens for each
over      below zero: its requests need more memory, or places in the batch, than there are, and some wait
leaving   it drains, and then stops
kept      it drains or has drained, and stays, empty
"""

from __future__ import annotations

from llumnix.policy.pairing import PairingTerms
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import InstanceState


def load_word(instance: InstanceSnapshot, terms: PairingTerms) -> str:
    """By the thresholds in force. Priorities' headroom is left out, as in the number that is shown."""
    if instance.state is not InstanceState.RUNNING:
        return "kept" if instance.drain_keep else "leaving"
    if instance.running + instance.waiting == 0:
        return "idle"
    freeness = migration_freeness(instance, None)
    if freeness < 0:
        return "over"
    if freeness < terms.migrate_out_freeness:
        return "tight"
    return "roomy" if freeness > terms.migrate_in_freeness else "steady"
