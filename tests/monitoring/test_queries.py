"""What is asked of Prometheus, by the alerts, the board and the documentation, where it watches two servers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llumnix.control.orders import MoveCause
from monitoring_tools import PANELS, RULES, queries, tool

ROOT = Path(__file__).parent.parent.parent
SERVERS = [{"job": "llumnix", "instance": name} for name in ("a", "b")]


def documented() -> list[str]:
    """Blocks of the documentation that are queries."""
    found: list[str] = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        blocks = re.split(r"^```.*\n", page.read_text(), flags=re.MULTILINE)[1::2]
        found += [block.strip() for block in blocks if re.match(r"(sum|rate|increase|vllm:|llumnix_)", block)]
    return found


def asked() -> list[str]:
    alerts = [str(rule["expr"]) for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]]
    return [*alerts, *(query for panel in PANELS for query in queries(panel, "1m")), *documented()]


def of_two_servers(metric: str) -> list[dict[str, str]]:
    """Series of two instances each."""
    vllms = metric.startswith("vllm:") or metric == "llumnix_engine_info"
    ours = metric.startswith("llumnix_")
    return [
        server | ({"engine": str(place)} if vllms else {}) | ({"instance_id": f"i{place}"} if ours else {})
        for server in SERVERS
        for place in range(2)
    ]


def series(metric: str, labels: dict[str, str], values: str = "1x20") -> dict[str, str]:
    pairs = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return {"series": f"{metric}{{{pairs}}}", "values": values}


def evaluated(path: Path, rows: list[dict[str, str]], looks: list[dict[str, Any]]) -> str:
    """What promtool has to say of it."""
    situation = {"interval": "15s", "input_series": rows, "promql_expr_test": looks}
    path.write_text(yaml.safe_dump({"tests": [situation]}))
    run = subprocess.run([tool("promtool"), "test", "rules", str(path)], capture_output=True, text=True, check=False)
    return run.stdout + run.stderr


def test_the_documentation_has_some() -> None:
    assert any("group_left" in query for query in documented())


@pytest.mark.io
def test_none_mixes_up_two_servers(tmp_path: Path) -> None:
    """As `on (engine)` would, where each server has an engine 0."""
    metrics = {name for query in asked() for name in re.findall(r"\b(?:vllm:|llumnix_|http_)\w+", query)}
    rows = [series(metric, labels) for metric in sorted(metrics) for labels in of_two_servers(metric)]
    looks = [{"expr": query, "eval_time": "2m", "exp_samples": []} for query in asked()]
    wrong = [line for line in evaluated(tmp_path / "queries.yaml", rows, looks).splitlines() if "err:" in line]
    assert wrong == []


@pytest.mark.io
def test_what_the_page_a_command_or_a_probe_asks_is_no_answer_to_a_client(tmp_path: Path) -> None:
    handlers = {
        "/v1/completions": "5xx",
        "/llumnix/": "2xx",
        "/llumnix/v1/alive": "2xx",
        "/llumnix/v1/instances": "4xx",
    }
    rows = [
        series("http_requests_total", SERVERS[0] | {"handler": handler, "status": status}, "0+15x20")
        for handler, status in handlers.items()
    ]
    (answers,) = (query for panel in PANELS if panel["title"] == "Answers" for query in queries(panel, "1m"))
    look = {"expr": answers, "eval_time": "2m", "exp_samples": [{"labels": '{status="5xx"}', "value": 1}]}
    said = evaluated(tmp_path / "answers.yaml", rows, [look])
    assert "SUCCESS" in said, said


def test_the_board_says_what_each_rule_that_asks_for_moves_is() -> None:
    (text,) = (panel["description"] for panel in PANELS if panel["title"] == "Moves")
    assert [cause for cause in MoveCause if cause.replace("_", " ") not in text] == []
