"""Writes the Grafana board, deploy/grafana/llumnix.json, from the panels below. `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

TARGET = Path(__file__).parent.parent / "deploy" / "grafana" / "llumnix.json"

_FROM = 'job=~"$job", instance=~"$instance"'
"""Which servers: chosen at the top of the board."""
_TO_CLIENTS = ', handler!~"/llumnix.*"'
"""Not to the live page, to `llumnix` commands, nor to probes."""
_HEIGHT, _PER_ROW, _COLUMNS = 8, 3, 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    title: str
    text: str
    unit: str
    queries: dict[str, str]
    """From the words beside a line (`{{label}}` is filled in) to the expression."""


def rate(metric: str, by: str = "", having: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{_FROM}{having}}}[$__rate_interval]))"


def share(quantile: float, histogram: str) -> str:
    return f"histogram_quantile({quantile}, {rate(f'{histogram}_bucket', 'le')})"


def halves(histogram: str) -> dict[str, str]:
    return {"P50": share(0.5, histogram), "P99": share(0.99, histogram)}


def gauge(metric: str) -> str:
    return f"{metric}{{{_FROM}}}"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Clients": (
        Panel(
            "Time to first token",
            "From the arrival of a request, its time in a queue included.",
            "s",
            halves("vllm:time_to_first_token_seconds"),
        ),
        Panel(
            "Time between tokens",
            "What clients of streams see. Hand-overs and preemptions are in the P99.",
            "s",
            halves("vllm:inter_token_latency_seconds"),
        ),
        Panel(
            "Answers",
            "By class of HTTP status, without those to the live page, admin routes and probes. 5xx: mostly 503, no "
            "instance takes requests, or too many wait.",
            "reqps",
            {"{{status}}": rate("http_requests_total", "status", _TO_CLIENTS)},
        ),
        Panel(
            "Requests that ended",
            "By reason: stop and length are as they should be, abort is a client that left.",
            "reqps",
            {"{{finished_reason}}": rate("vllm:request_success_total", "finished_reason")},
        ),
        Panel(
            "Tokens",
            "Prompts read and tokens made, by all instances.",
            "short",
            {
                "prompt tokens/s": rate("vllm:prompt_tokens_total"),
                "generated tokens/s": rate("vllm:generation_tokens_total"),
            },
        ),
        Panel(
            "Time in a queue",
            "Before an instance begins with a request. Where it grows, more instances are needed.",
            "s",
            halves("vllm:request_queue_time_seconds"),
        ),
    ),
    "Cluster": (
        Panel(
            "Freeness",
            "Free blocks per request: low on one instance and high on another is what moves repair, low on all of them "
            "calls for more instances. None while an instance drains.",
            "short",
            {"{{instance_id}}": gauge("llumnix_freeness")},
        ),
        Panel(
            "KV cache in use",
            "Blocks that requests hold, of all that there are.",
            "percentunit",
            {"{{instance_id}}": f"1 - {gauge('llumnix_free_blocks')} / {gauge('llumnix_total_blocks')}"},
        ),
        Panel(
            "Running requests", "In the batch of each instance.", "short", {"{{instance_id}}": gauge("llumnix_running")}
        ),
        Panel("Waiting requests", "Queued on each instance.", "short", {"{{instance_id}}": gauge("llumnix_waiting")}),
        Panel(
            "Requests sent to instances",
            "By dispatch; moves are not counted.",
            "reqps",
            {"{{instance_id}}": rate("llumnix_dispatches_total", "instance_id")},
        ),
        Panel(
            "Preemptions",
            "Requests thrown out and computed twice, and those that left in time.",
            "ops",
            {
                "preempted": rate("llumnix_preemptions_total"),
                "avoided": rate("llumnix_preemptions_avoided_total"),
            },
        ),
    ),
    "Moves": (
        Panel(
            "Moves",
            "By the rule that asked: balance, room for the first of a queue, relief of a full one, pace (an engine is "
            "slower), decode (its prompt is computed), drain, by hand.",
            "ops",
            {"{{cause}}": rate("llumnix_migrations_total", "cause", ', outcome="moved"')},
        ),
        Panel(
            "Attempts",
            "How they ended. One that stayed goes on where it was; many refusals say that nobody has room.",
            "ops",
            {"{{outcome}} {{stayed_why}}": rate("llumnix_migrations_total", "outcome, stayed_why")},
        ),
        Panel(
            "Downtime of moves",
            "What a client waited longer than for a normal step.",
            "s",
            halves("llumnix_migration_downtime_seconds"),
        ),
        Panel("KV copied", "By moves.", "Bps", {"copied": rate("llumnix_migrated_bytes_total")}),
    ),
    "Scaling": (
        Panel("Instances", "By state.", "short", {"{{state}}": gauge("llumnix_instances")}),
        Panel(
            "Instances paid for",
            "Instance-seconds per second, draining and starting ones included.",
            "short",
            {"instances": rate("llumnix_instance_seconds_total")},
        ),
        Panel(
            "Decisions of auto-scaling",
            "Instances started and drained (in advise mode: that it would have).",
            "short",
            {"{{action}}": f"increase(llumnix_scaling_decisions_total{{{_FROM}}}[$__range])"},
        ),
    ),
    "Health": (
        Panel(
            "Scheduler",
            "1 while it is heard. Without it requests are served, but nothing moves by itself and nothing scales.",
            "short",
            {"up": f"min({gauge('llumnix_scheduler_up')})"},
        ),
        Panel(
            "Time between two tokens",
            "By what the steps of each instance take. Requests leave one where it is much longer than elsewhere.",
            "s",
            {"{{instance_id}}": gauge("llumnix_token_seconds")},
        ),
        Panel(
            "Age of load reports",
            "A few tenths of a second, else an instance stands still or its link is slow.",
            "s",
            {"{{instance_id}}": gauge("llumnix_report_age_seconds")},
        ),
        Panel(
            "Lag of the front ends",
            "How late their event loops are. All tokens pass there: above some 20 ms, add front ends.",
            "s",
            halves("llumnix_event_loop_lag_seconds"),
        ),
        Panel(
            "Streams replayed",
            "They went on elsewhere: lost with their instance, or as it was asked for, by a drain or a stop.",
            "ops",
            {"{{cause}}": rate("llumnix_replays_total", "cause")},
        ),
        Panel(
            "Strangers, and what was dropped",
            "Connections without our keys, messages that are none of ours or reach nobody, and what came too late.",
            "ops",
            {
                "refused": rate("llumnix_refused_connections_total"),
                "malformed": rate("llumnix_malformed_messages_total"),
                "unsent": rate("llumnix_unsent_messages_total"),
                "late outputs": rate("llumnix_late_outputs_total"),
                "late to instances": rate("llumnix_late_messages_total"),
                "late to the scheduler": rate("llumnix_scheduler_late_messages_total"),
            },
        ),
        Panel(
            "Versions",
            "Of Llumnix and of vLLM.",
            "short",
            {"{{version}} on vLLM {{vllm}}": f"sum by (version, vllm) ({gauge('llumnix_build_info')})"},
        ),
    ),
}


def board() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for row, of_row in ROWS.items():
        panels.append(
            {
                "type": "row",
                "id": len(panels) + 1,
                "title": row,
                "collapsed": False,
                "gridPos": _place(0, y, _COLUMNS, 1),
            }
        )
        y += 1
        width = _COLUMNS // _PER_ROW
        for number, panel in enumerate(of_row):
            x = number % _PER_ROW
            panels.append(_panel(panel, len(panels) + 1, _place(x * width, y, width, _HEIGHT)))
            if x == _PER_ROW - 1 or number == len(of_row) - 1:
                y += _HEIGHT
    return {
        "uid": "llumnix",
        "title": "Llumnix",
        "description": "Many LLM engines served as one: what clients see, how full it is, what moves, and why.",
        "tags": ["llumnix", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _choice("job", "Job", "label_values(llumnix_build_info, job)"),
                _choice("instance", "Server", 'label_values(llumnix_build_info{job=~"$job"}, instance)'),
            ]
        },
        "panels": panels,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "id": number,
        "title": panel.title,
        "description": panel.text,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _DATASOURCE, "expr": expression, "legendFormat": legend}
            for place, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


def _choice(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


def reference() -> str:
    return json.dumps(board(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(not TARGET.exists() or TARGET.read_text() != reference())
    TARGET.write_text(reference())
    return 0


if __name__ == "__main__":
    sys.exit(main())
