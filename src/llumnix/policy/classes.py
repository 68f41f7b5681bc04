"""Classes of requests and the tenants that send them: what each is promised, and what it may use. Facts alone.

`classes_file.py` reads them from a file, `control/waiting_room.py` goes by them.
"""

from __future__ import annotations

import hashlib
from math import ceil

import msgspec
from msgspec.structs import replace

from llumnix.types import NORMAL, Priority

CLASS_HEADER = "X-Llumnix-Class"
"""By which a request names another class of its tenant than the first."""

DEFAULT_HOLD_S = 60.0
"""A request of a class without a target waits for its turn so long at most."""


class Declined(msgspec.Struct, frozen=True):
    """Why a request is not taken: an HTTP status, OpenAI's `type` of the error, a sentence."""

    status: int
    kind: str
    why: str
    retry_after_s: float | None = None
    """After so long it would be taken, as far as can be known; None: never, as it is."""


class ServiceClass(msgspec.Struct, frozen=True, kw_only=True):
    """What requests of one kind are promised. Shares count among classes of the same priority."""

    name: str
    ttft_s: float | None = None
    """Target: the first token within so many seconds of the arrival."""
    tpot_s: float | None = None
    """Target: seconds per further token."""
    share: float = 1.0
    priority: Priority = NORMAL
    max_held: int = 1000
    """More requests than these do not wait."""
    max_hold_s: float = DEFAULT_HOLD_S
    """Nor does any wait longer."""

    @property
    def patience_s(self) -> float:
        """A request whose first token would take longer need not wait for it."""
        return max(self.ttft_s or 0.0, self.max_hold_s)


class TenantTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant may use. A limit that is None is none; one of 0 lets nothing through."""

    name: str
    classes: tuple[str, ...]
    """That its requests may name; the first is that of those which name none."""
    key_sha256: str = ""
    weight: float = 1.0
    """Against the other tenants of a class, while several wait."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Prompt and output."""
    concurrent: int | None = None
    """Requests that run at once; more of them wait."""
    parts: int = 1
    """Front ends by which the limits are divided."""

    @property
    def concurrent_here(self) -> int | None:
        """At each front end."""
        return None if self.concurrent is None else ceil(self.concurrent / self.parts)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of itself; an empty string is nothing said."""

    key: str = ""
    """API key, as it was sent: each sign is one byte of it."""
    tenant: str = ""
    """Value of the header that names the tenant, where one does."""
    cls: str = ""
    tier: str = ""
    """OpenAI's `service_tier`: a wish for the class of that name, where there is one."""


class Seat(msgspec.Struct, frozen=True):
    """Whose a request is, and of which class."""

    tenant: TenantTerms
    cls: ServiceClass


class Classes(msgspec.Struct, frozen=True, kw_only=True):
    """All of a file, checked: every class that a tenant names is there, and each key belongs to one tenant."""

    classes: dict[str, ServiceClass]
    tenants: dict[str, TenantTerms]
    others: TenantTerms | None = None
    """Everybody who is not listed, together; None: they are not served."""
    tenant_header: str = ""
    """Names the tenant; empty: the API key does."""

    @property
    def all_tenants(self) -> dict[str, TenantTerms]:
        """Those who are listed, and all others as one."""
        return self.tenants if self.others is None else {**self.tenants, self.others.name: self.others}

    def seat(self, caller: Caller) -> Seat | Declined:
        """Tenants are looked up by their key's digest, so a comparison tells nothing of the key."""
        tenant = self._tenant_of(caller)
        return tenant if isinstance(tenant, Declined) else self._seat_of(tenant, caller)

    def seat_by_name(self, tenant: str, cls: str) -> Seat | Declined:
        """Of a request whose tenant is known already, in a simulation. `cls`: the one that it names, if any."""
        found = self.tenants.get(tenant, self.others)
        if found is None:
            return Declined(403, "permission_error", f"There is no tenant {tenant!r}.")
        return self._seat_of(found, Caller(cls=cls))

    def _seat_of(self, tenant: TenantTerms, caller: Caller) -> Seat | Declined:
        name = caller.cls
        if name and name not in self.classes:
            return Declined(400, "invalid_request_error", f"There is no class {name[:100]!r}.")
        if name and name not in tenant.classes:
            return Declined(403, "permission_error", f"The tenant may not use the class {name!r}.")
        if not name:
            name = caller.tier if caller.tier in tenant.classes else tenant.classes[0]
        return Seat(tenant, self.classes[name])

    def shared_by(self, front_ends: int) -> Classes:
        """Each front end's part of the limits: connections are spread evenly over them."""
        if front_ends == 1:
            return self
        tenants = {name: _part(tenant, front_ends) for name, tenant in self.tenants.items()}
        others = None if self.others is None else _part(self.others, front_ends)
        return replace(self, tenants=tenants, others=others)

    def _tenant_of(self, caller: Caller) -> TenantTerms | Declined:
        if self.tenant_header:
            found = self.tenants.get(caller.tenant)
            said = f"tenant {caller.tenant[:100]!r}" if caller.tenant else f"request without {self.tenant_header}"
        else:
            digest = hashlib.sha256(caller.key.encode("latin-1")).hexdigest()
            found = next((one for one in self.tenants.values() if one.key_sha256 == digest), None)
            said = "API key" if caller.key else "request without an API key"
        if found is None and self.others is None:
            return Declined(403, "permission_error", f"This {said} belongs to no tenant.")
        return found or self.others  # type: ignore[return-value]


def _part(tenant: TenantTerms, front_ends: int) -> TenantTerms:
    return replace(tenant, parts=front_ends)
