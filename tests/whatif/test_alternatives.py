"""What can be asked for with --try."""

from __future__ import annotations

import pytest

from llumnix.config import MigrationConfig, PolicyConfig
from llumnix.errors import UsageError
from llumnix.whatif.alternatives import Alternative, alternatives

WAS = Alternative(
    name="as it was", instances=4, policy=PolicyConfig(relief_steps=8), migration=MigrationConfig(max_stages=5)
)


def tried(*texts: str) -> list[Alternative]:
    return alternatives(texts, WAS)


def test_what_is_not_said_is_as_it_was() -> None:
    (more,) = tried("instances=6")
    assert (more.instances, more.policy, more.migration) == (6, WAS.policy, WAS.migration)
    (other,) = tried("policy=infaas++,max-stages=3")
    assert (other.policy.policy, other.migration.max_stages, other.instances) == ("infaas++", 3, 4)
    (still,) = tried("migration=off")
    assert not still.policy.migration
    assert still.policy.relief_steps == 8


def test_range_of_instances_is_an_alternative_each() -> None:
    made = tried("instances=2..4,migration=off", "migrate_out_freeness=5,migrate_in_freeness=6")
    assert [each.instances for each in made] == [2, 3, 4, 4]
    assert [each.name for each in made[:3]] == [f"instances={n},migration=off" for n in (2, 3, 4)]
    assert made[3].policy.migrate_out_freeness == 5.0


def test_too_many_are_refused_before_any_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llumnix.whatif.alternatives._alternative", lambda *_: pytest.fail("one was made"))
    with pytest.raises(UsageError, match=r"^32768 alternatives are too many: at most 64 at a time\.$"):
        tried(*["instances=1..4096"] * 8)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("instances", "'instances' is not one knob and its value"),
        ("instances=", "'instances=' is not one knob and its value"),
        ("instances=2,instances=3", "'instances=3' is not one knob"),
        ("instances=none", "instances are a number from 1 to 4096"),
        ("instances=0", "instances are a number from 1 to 4096"),
        ("instances=5..4", "5 is more than 4"),
        ("instances=1..100", "100 alternatives are too many"),
        ("polcy=infaas++", "there is no knob polcy; did you mean policy?"),
        ("instnces=4", "there is no knob instnces; did you mean instances?"),
        ("Relief_steps=4", "there is no knob Relief_steps; did you mean relief-steps?"),
        ("help=4", "there is no knob help."),
        ("policy=none", "none"),
        ("migration=perhaps", "migration is on or off, not perhaps"),
        ("relief-steps=many", "invalid int value"),
        ("relief-steps=-1", "--relief-steps must not be negative"),
        ("policy=round-robin,relief-steps=4", "--relief-steps is for"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        tried(text)
    assert sentence in str(error.value)
