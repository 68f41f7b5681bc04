"""A classes file that is right is read; one that is not is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llumnix.classes_file import MOST_TENANTS, read_classes
from llumnix.errors import UsageError
from llumnix.policy.classes import Classes, ServiceClass, TenantTerms
from llumnix.types import HIGH

KEY = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

WHOLE = f"""
classes:
  interactive: {{ttft_s: 1.0, tpot_s: 0.1, share: 4, priority: high}}
  batch:
    max_hold_s: 600
    max_held: 50
tenants:
  alice:
    key_sha256: {KEY}
    classes: [interactive, batch]
    weight: 2
    requests_per_minute: 600
    tokens_per_minute: 0
    concurrent: 8
others: {{classes: [batch], requests_per_minute: 0.5}}
"""

OWNER = f"{{classes: [a], key_sha256: {KEY}}}"
TWICE = f"classes: {{a: {{}}}}\ntenants:\n  t: {OWNER}\n  u: {OWNER}\n"

READ = Classes(
    classes={
        "interactive": ServiceClass(
            name="interactive", ttft_s=1.0, tpot_s=0.1, share=4.0, priority=HIGH, max_hold_s=1.0
        ),
        "batch": ServiceClass(name="batch", max_hold_s=600.0, max_held=50),
    },
    tenants={
        "alice": TenantTerms(
            name="alice",
            key_sha256=KEY,
            classes=("interactive", "batch"),
            weight=2.0,
            requests_per_minute=600.0,
            tokens_per_minute=0.0,
            concurrent=8,
        )
    },
    others=TenantTerms(name="others", classes=("batch",), requests_per_minute=0.5),
)


def read(folder: Path, text: str) -> Classes:
    path = folder / "c.yaml"
    path.write_text(text)
    return read_classes(str(path))


def test_all_that_can_stand_there_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, WHOLE) == READ


def test_json_is_read_as_well(tmp_path: Path) -> None:
    said = {
        "tenant": "header:X-Tenant",
        "classes": {"c": {"ttft_s": 2}},
        "tenants": {"t": {"classes": ["c"]}},
    }
    classes = read(tmp_path, json.dumps(said, indent=1))
    assert classes.tenant_header == "X-Tenant"
    assert classes.classes["c"].max_hold_s == 2.0
    assert classes.others is None


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("clases: {a: {}}", 1, "is unknown: clases; perhaps classes is meant"),
        ("classes:\n  a: {}\n", 1, "nobody would be served"),
        ("classes:\n  a: {ttft: 1}\n", 2, "a name in a of the file, classes is unknown: ttft; perhaps ttft_s"),
        ("classes: {a: {}}\nothers:\n  classes: [a]\n  foo: 1\n", 4, "is unknown: foo; known are"),
        ("classes:\n  a: {}\n  a: {}\nothers: {classes: [a]}", 3, "is there twice: a"),
        ("classes:\n  a:\n    share: 0\n", 3, "must be above 0, not 0"),
        ("classes:\n  a:\n    share: -1\n", 3, "must be a number of at least 0, not -1"),
        ("classes:\n  a:\n    ttft_s: .nan\n", 3, "must be a number of at least 0, not nan"),
        ("classes:\n  a:\n    ttft_s: .inf\n", 3, "must be a number of at least 0, not inf"),
        ("classes:\n  a:\n    ttft_s: true\n", 3, "must be a number of at least 0, not True"),
        ("classes:\n  a:\n    ttft_s: fast\n", 3, "must be a number of at least 0, not 'fast'"),
        ("classes:\n  a:\n    max_held: 1.5\n", 3, "must be a whole number, not 1.5"),
        ("classes:\n  a:\n    priority: urgent\n", 3, "must be one of high, normal, not 'urgent'"),
        ("classes:\n  a: 3\n", 2, "must be a mapping of names to values"),
        ("classes:\n  a b: {}\n", 2, "may have letters, digits and"),
        ("classes: {}\nothers: {classes: [a]}", 1, "has none in it"),
        ("others: {classes: [a]}", 1, "has no classes"),
        ("classes: {a: {}}\nothers: {classes: [b]}", 2, "names a class that is not there: b"),
        ("classes: {a: {}}\nothers: {classes: [{a: }]}", 2, "names a class that is not there: {'a': None}"),
        ("classes: {a: {}}\nothers: {classes: [[a]]}", 2, "names a class that is not there: ['a']"),
        (f"classes:\n  a:\n    share: 1{'0' * 400}\n", 3, "must be a number of at least 0, not 1000"),
        ("classes:\n  a:\n    max_held: 0\n", 3, "must be at least 1; where no request is to wait"),
        ("classes: {a: {}}\nothers: {classes: []}", 2, "must be a list of classes"),
        ("classes: {a: {}}\nothers: {}", 2, "has no classes"),
        ("classes: {a: {}}\ntenants:\n  t: {classes: [a]}\n", 3, "has no key_sha256"),
        ("classes: {a: {}}\ntenants:\n  t: {classes: [a], key_sha256: secret}\n", 3, "must be 64 hexadecimal digits"),
        (TWICE, 4, "has the key of t"),
        (
            "tenant: header:X-T\nclasses: {a: {}}\ntenants:\n  t: {classes: [a], key_sha256: x}\n",
            4,
            "is unknown: key_sha",
        ),
        ("tenant: header:X-T\nclasses: {a: {}}\ntenants:\n  others: {classes: [a]}\n", 4, "must have another name"),
        ("tenant: body\nclasses: {a: {}}\n", 1, "must be key, or header:NAME, not 'body'"),
        ("tenant: 'header:'\nclasses: {a: {}}\n", 1, "must be key, or header:NAME"),
        ("- classes\n", 1, "must be a mapping of names to values"),
        ("classes: {a: {}}\nothers: {classes: [a], concurrent: !!python/none x}\n", 2, "cannot be read"),
    ],
)
def test_whatever_is_wrong_is_refused_with_its_line(tmp_path: Path, text: str, line: int, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path}/c.yaml:{line}: ")
    assert why in str(refused.value)


def test_what_is_no_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"c.yaml:2: the file is not YAML: mapping values are not allowed"):
        read(tmp_path, "classes: {a: {}}\nothers: classes: [a]\n")
    with pytest.raises(UsageError, match="is not YAML: maximum recursion depth"):
        read(tmp_path, 2000 * "[")
    with pytest.raises(UsageError, match="is not YAML: unacceptable character"):
        read(tmp_path, "classes: \x00\n")
    with pytest.raises(UsageError, match="is empty"):
        read(tmp_path, "# later\n")
    with pytest.raises(UsageError, match="cannot be read: no such file"):
        read_classes(str(tmp_path / "none.yaml"))


def test_too_many_tenants_are_refused(tmp_path: Path) -> None:
    tenants = "".join(f"  t{number}: {{classes: [a]}}\n" for number in range(MOST_TENANTS + 1))
    with pytest.raises(UsageError, match=f"has more than {MOST_TENANTS} tenants"):
        read(tmp_path, f"tenant: header:X-T\nclasses: {{a: {{}}}}\ntenants:\n{tenants}")
