"""Writes deploy/prometheus/prometheusrule.yaml: the alerts for the Prometheus operator. `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import indent

TARGET = Path(__file__).parent.parent / "deploy" / "prometheus" / "prometheusrule.yaml"
RULES = TARGET.with_name("llumnix.rules.yaml")

HEAD = """# Made from llumnix.rules.yaml by scripts/prometheus_rule.py.
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: llumnix
  labels: {app.kubernetes.io/name: llumnix}
spec:
"""


def reference() -> str:
    return HEAD + indent(RULES.read_text().partition("---\n")[2], "  ")


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(not TARGET.exists() or TARGET.read_text() != reference())
    TARGET.write_text(reference())
    return 0


if __name__ == "__main__":
    sys.exit(main())
