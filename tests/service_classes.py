"""Tenants and classes in a line, for tests of whoever admits requests."""

from __future__ import annotations

from llumnix.policy.classes import Classes, ServiceClass, TenantTerms


def tenant(name: str, *classes: str, **limits: float) -> TenantTerms:
    """Of the class c, if no other is named."""
    return TenantTerms(name=name, classes=classes or ("c",), **limits)  # type: ignore[arg-type]


def classes_of(*tenants: TenantTerms, classes: tuple[ServiceClass, ...] = (ServiceClass(name="c"),)) -> Classes:
    return Classes(
        classes={each.name: each for each in classes},
        tenants={each.name: each for each in tenants},
        tenant_header="X-Tenant",
    )
