"""Writes docs/use/configuration.md from the configuration dataclasses. `--check` only compares."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, get_type_hints

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.roles_config import RolesConfig

TARGET = Path(__file__).parent.parent / "docs" / "use" / "configuration.md"

HEAD = """# Configuration reference

Made from the dataclasses in `src/llumnix/config.py` and `roles_config.py` by
`scripts/configuration_reference.py`. Each is a flag of `llumnix serve`; switches have a `--no-` form. Flags that are
not here go to vLLM. Numbers go up to `1e9`: in seconds that is never, such as `--step-timeout-s 1e9` for an engine that
is never to count as hung.
"""


def reference() -> str:
    configs = (ClusterConfig, ScalingConfig, PolicyConfig, RolesConfig, MigrationConfig)
    return "\n".join([HEAD, *map(_section, configs)])


def _section(config: type[Any]) -> str:
    title = " ".join((config.__doc__ or "").split())
    knobs = [field for field in dataclasses.fields(config) if field.metadata]
    rows = [_row(field, get_type_hints(config)[field.name]) for field in knobs]
    return "\n".join(
        [f"## {title.partition(':')[0].rstrip('.')}", "", "| flag | default | meaning |", "|---|---|---|", *rows, ""]
    )


def _row(field: dataclasses.Field[Any], kind: Any) -> str:
    flag = "--" + field.name.replace("_", "-")
    default = ("on" if field.default else "off") if kind is bool else field.default
    shown = "" if default in (None, "") else f"`{default}`"
    return f"| `{flag}` | {shown} | {field.metadata['help']} |"


def main() -> int:
    text = reference()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() == text:
            return 0
        print("docs/use/configuration.md is not what the dataclasses say: run scripts/configuration_reference.py")
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
