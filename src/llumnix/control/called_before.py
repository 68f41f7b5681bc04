"""How much is called before a request that comes to wait: of what is held, who goes first and what goes by turns."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from llumnix.control.held_requests import HeldRequests, QueueName
from llumnix.control.tenant_account import TenantAccount
from llumnix.policy.classes import ServiceClass


def tokens_called_before(
    queue: QueueName,
    prompt_tokens: int,
    held: HeldRequests,
    classes: Mapping[str, ServiceClass],
    accounts: Mapping[str, TenantAccount],
) -> float:
    """Prompt tokens. All of a higher priority; of the same one, what the others get by turns while this tenant's own
    are served. Who waits for the end of one of its own is before nobody, but for its own."""
    cls, own_weight = classes[queue.cls], accounts[queue.tenant].terms.weight
    priority, own_class = cls.priority, queue.cls
    higher = same = peers = 0
    weights, shares = own_weight, {own_class: cls.share}
    for other in held.queues:
        theirs = classes[other.cls]
        if theirs.priority > priority:
            continue
        account, is_own = accounts[other.tenant], other == queue
        tokens = held.tokens_of(other, inf if is_own else account.places)
        if theirs.priority < priority:
            higher += tokens
        elif tokens:
            same += tokens
            shares[other.cls] = theirs.share
            if other.cls == own_class:
                peers += tokens
                weights += 0.0 if is_own else account.terms.weight
    own = held.tokens_of(queue) + prompt_tokens
    of_class = min(peers + prompt_tokens, own * weights / own_weight)
    of_all = min(same + prompt_tokens, of_class * sum(shares.values()) / cls.share)
    return higher + of_all - prompt_tokens
