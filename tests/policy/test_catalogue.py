"""The policies by name, and the thresholds in force."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.config import PolicyConfig
from llumnix.errors import UsageError
from llumnix.policy.catalogue import POLICIES, find_policy


def test_names_are_the_contract() -> None:
    assert list(POLICIES) == [
        "llumnix", "llumnix-paper", "llumnix-base", "infaas++", "round-robin", "least-requests", "vllm-dp",
        "dynamo-kv", "llm-d-prefix", "lmetric", "cache-aware",
    ]  # fmt: skip
    assert PolicyConfig().policy == "llumnix"


def test_unknown_policy_is_one_sentence_with_the_names() -> None:
    with pytest.raises(UsageError, match=r"^--policy must be one of llumnix, .*, cache-aware, not best\.$"):
        find_policy("best")


@pytest.mark.parametrize(
    ("policy", "configured", "thresholds"),
    [
        ("llumnix", {}, (3, 3)),
        ("llumnix", {"migrate_out_freeness": 5.0}, (5, 5)),
        ("llumnix", {"migrate_out_freeness": 50.0}, (50, 50)),
        ("llumnix-paper", {}, (3, 3)),
        ("llumnix-paper", {"migrate_out_freeness": 10.0}, (10, 10)),
        ("llumnix-base", {"migrate_in_freeness": 20.0}, (3, 20)),
    ],
)
def test_thresholds_are_the_policys_unless_configured(policy: str, configured: Any, thresholds: Any) -> None:
    terms = POLICIES[policy].pairing_terms(PolicyConfig(policy=policy, **configured))
    assert (terms.migrate_out_freeness, terms.migrate_in_freeness) == thresholds


def test_thresholds_that_would_bounce_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="would bounce"):
        PolicyConfig(migrate_out_freeness=10.0, migrate_in_freeness=5.0)


def test_baselines_never_migrate_and_know_no_priority() -> None:
    for name in list(POLICIES)[3:]:
        assert POLICIES[name].pairing is None
        assert POLICIES[name].priority_target_tokens(PolicyConfig(policy=name)) is None
