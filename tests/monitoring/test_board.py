"""The Grafana board: each panel says what it shows and in which unit, asks whom the reader chose, and is understood."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring_tools import BOARD, PANELS, promtool, queries


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_panel_can_be_read(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["legendFormat"]
        selectors = re.findall(r"\{([^}]*)\}", target["expr"])
        assert selectors
        assert all('job=~"$job", instance=~"$instance"' in selector for selector in selectors)
        for window in re.findall(r"\[([^\]]*)\]", target["expr"]):
            assert window in ("$__rate_interval", "$__range")


def test_no_two_panels_are_one() -> None:
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells


def test_reader_chooses_data_source_job_and_server() -> None:
    chosen = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert chosen["datasource"]["type"] == "datasource"
    assert all(chosen[name]["multi"] and chosen[name]["includeAll"] for name in ("job", "instance"))


def test_all_expressions_are_what_prometheus_understands(tmp_path: Path) -> None:
    expressions = [query for panel in PANELS for query in queries(panel, "1m")]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(expressions)]
    path = tmp_path / "board.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    promtool("check", "rules", str(path))
