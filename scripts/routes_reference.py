"""Writes docs/use/routes.md from `llumnix.engine.vllm.front_end.vllm_routes`. `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from llumnix.engine.vllm.front_end.vllm_routes import ROUTES, Reach

TARGET = Path(__file__).parent.parent / "docs" / "use" / "routes.md"

HEAD = """# Routes of vLLM's server, over many processes

vLLM keeps some things once per server process: which adapters there are, whether it is paused, what it profiles. Here
several front ends and instances are one server, and others join later, so each route was looked at; made from
`src/llumnix/engine/vllm/front_end/vllm_routes.py` by `scripts/routes_reference.py`. A test compares it with the routes
of the vLLM that is installed, and a front end warns of routes that it does not know, such as those of a plugin.

What the whole server is in, apart from its requests, is one value with a version: a change is carried out one at a
time, has taken place when the answer comes, and whoever joins later, an instance or a restarted front end, is brought
to it before it serves ([why so](../understand/adr/0005-server-state.md)). A change that fails on one instance is taken
back on all.

"""
MEANINGS = {
    Reach.ALL: "Acts on, or tells of, all front ends and instances; what it changes holds for those that come later.",
    Reach.NOW: "Acts on the instances that there are.",
    Reach.ONE: "Would be kept by one front end: such a server does not start with several.",
    Reach.NONE: "Answers with a sentence and 501 (400: `/scale_elastic_ep`).",
    Reach.EACH: "Concerns nothing but its own request.",
}


def reference() -> str:
    parts = [HEAD]
    for reach, meaning in MEANINGS.items():
        chosen = {path: note for path, (found, note) in sorted(ROUTES.items()) if found is reach}
        parts.append(f"## {reach.value[:1].upper()}{reach.value[1:]}\n\n{meaning}\n\n| route | |\n|---|---|\n")
        parts += [f"| `{path}` | {note} |\n" for path, note in chosen.items()]
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def main() -> int:
    text = reference()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() == text:
            return 0
        print("docs/use/routes.md is not what routes.py says: run scripts/routes_reference.py")
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
