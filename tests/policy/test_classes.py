"""Whose a request is and of which class, by what it says of itself."""

from __future__ import annotations

import hashlib

import pytest

from llumnix.policy.classes import Caller, Classes, Declined, Seat, ServiceClass, TenantTerms

FAST, FLEX = ServiceClass(name="fast", ttft_s=1.0), ServiceClass(name="flex")


def terms(name: str, *classes: str, key: str = "", **limits: float) -> TenantTerms:
    digest = hashlib.sha256(key.encode()).hexdigest() if key else ""
    return TenantTerms(name=name, classes=classes, key_sha256=digest, **limits)  # type: ignore[arg-type]


ALICE, BOB, OTHERS = terms("alice", "fast", "flex", key="a"), terms("bob", "flex", key="b"), terms("others", "flex")
LISTED = {"alice": ALICE, "bob": BOB}
BY_KEY = Classes(classes={"fast": FAST, "flex": FLEX}, tenants=LISTED)
BY_HEADER = Classes(classes={"fast": FAST, "flex": FLEX}, tenants=LISTED, tenant_header="X-Tenant")
OPEN = Classes(classes={"fast": FAST, "flex": FLEX}, tenants=LISTED, others=OTHERS)


@pytest.mark.parametrize(
    ("classes", "caller", "seat"),
    [
        (BY_KEY, Caller(key="a"), Seat(ALICE, FAST)),
        (BY_KEY, Caller(key="b"), Seat(BOB, FLEX)),
        (BY_KEY, Caller(key="a", cls="flex"), Seat(ALICE, FLEX)),
        (BY_KEY, Caller(key="a", tier="flex"), Seat(ALICE, FLEX)),
        (BY_KEY, Caller(key="a", cls="fast", tier="flex"), Seat(ALICE, FAST)),
        (BY_KEY, Caller(key="b", tier="fast"), Seat(BOB, FLEX)),
        (BY_KEY, Caller(key="a", tier="auto"), Seat(ALICE, FAST)),
        (BY_HEADER, Caller(key="b", tenant="alice"), Seat(ALICE, FAST)),
        (OPEN, Caller(key="nobody's"), Seat(OTHERS, FLEX)),
        (OPEN, Caller(), Seat(OTHERS, FLEX)),
    ],
)
def test_request_is_its_tenants_and_of_the_class_that_it_names(classes: Classes, caller: Caller, seat: Seat) -> None:
    assert classes.seat(caller) == seat


@pytest.mark.parametrize(
    ("classes", "caller", "status", "why"),
    [
        (BY_KEY, Caller(key="c"), 403, "This API key belongs to no tenant."),
        (BY_KEY, Caller(), 403, "This request without an API key belongs to no tenant."),
        (BY_KEY, Caller(tenant="alice"), 403, "This request without an API key belongs to no tenant."),
        (BY_HEADER, Caller(key="a"), 403, "This request without X-Tenant belongs to no tenant."),
        (BY_HEADER, Caller(tenant="eve"), 403, "This tenant 'eve' belongs to no tenant."),
        (BY_KEY, Caller(key="b", cls="fast"), 403, "The tenant may not use the class 'fast'."),
        (BY_KEY, Caller(key="b", cls="slow"), 400, "There is no class 'slow'."),
        (OPEN, Caller(cls="fast"), 403, "The tenant may not use the class 'fast'."),
    ],
)
def test_who_is_unknown_or_names_what_is_not_his_is_told_so(
    classes: Classes, caller: Caller, status: int, why: str
) -> None:
    answer = classes.seat(caller)
    assert isinstance(answer, Declined)
    assert (answer.status, answer.why, answer.retry_after_s) == (status, why, None)


def test_an_api_key_may_be_of_any_signs() -> None:
    """A header's bytes are read one by one."""
    key = "schlüssel"
    owner = terms("t", "flex", key=key)
    found = Classes(classes={"flex": FLEX}, tenants={"t": owner}).seat(Caller(key=key.encode().decode("latin-1")))
    assert found == Seat(owner, FLEX)


def test_front_ends_share_the_limits_and_nothing_else() -> None:
    tenant = terms("t", "flex", requests_per_minute=90.0, tokens_per_minute=0.0, concurrent=4)
    shared = Classes(classes={"flex": FLEX}, tenants={"t": tenant}, others=OTHERS).shared_by(3)
    part = shared.tenants["t"]
    assert (part.requests_per_minute, part.tokens_per_minute) == (90.0, 0.0)
    assert (part.parts, part.concurrent, part.concurrent_here) == (3, 4, 2)
    assert shared.others is not None
    assert (shared.others.name, shared.others.parts) == (OTHERS.name, 3)
    assert shared.classes == {"flex": FLEX}
