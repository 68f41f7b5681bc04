"""The alerts of deploy/prometheus: every one fires when it must, keeps still when it must not, and says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring_tools import RULES, promtool

ROOT = Path(__file__).parent.parent.parent
SITUATIONS = Path(__file__).parent / "alerts.yaml"

ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]


def test_rules_are_what_prometheus_understands() -> None:
    promtool("check", "rules", str(RULES))


@pytest.mark.io
def test_each_fires_when_it_must_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(f"rule_files: [{RULES}]\n{SITUATIONS.read_text()}")
    promtool("test", "rules", str(tmp_path / "alerts.yaml"))


def test_none_was_forgotten() -> None:
    expected: dict[str, set[bool]] = {}
    for situation in yaml.safe_load(SITUATIONS.read_text())["tests"]:
        for look in situation["alert_rule_test"]:
            expected.setdefault(look["alertname"], set()).add(bool(look["exp_alerts"]))
    assert expected == {rule["alert"]: {True, False} for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_each_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description", "runbook_url"} <= rule["annotations"].keys()
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]
