"""Which role an instance gets that comes in nobody's place."""

from __future__ import annotations

import pytest

from llumnix.control.wanted_roles import WantedRoles
from llumnix.roles_config import RolesConfig
from llumnix.types import Role

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


@pytest.mark.parametrize(("present", "role"), [([P, D, D], D), ([P, D], D), ([M, M], M), ([], M)])
def test_with_adaptive_roles_it_does_what_those_do_that_are_not_for_prompts(present: list[Role], role: Role) -> None:
    roles = WantedRoles(RolesConfig(roles="adaptive", ttft_target_ms=1000, tpot_target_ms=30))
    for new in (P, D, D, D):
        roles.change(M, new)
    assert roles.of_another(present) is role


def test_configured_roles_are_made_up_for() -> None:
    roles = WantedRoles(RolesConfig(prefill_instances=1, decode_instances=2, tpot_target_ms=30))
    assert [roles.of_another(present) for present in ([D, D], [P, D], [P, D, D])] == [P, D, M]
    roles.change(M, D)
    assert roles.of_another([P, D, D]) is D
