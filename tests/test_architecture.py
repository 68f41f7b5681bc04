"""The house rules that no reader should have to check by eye."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "llumnix").rglob("*.py"))

LONGEST_FILE = 550
"""Lines. The aim is 250; a file that needs more than this holds two concepts."""


def test_imports_follow_the_layers() -> None:
    lint = [str(Path(sys.executable).with_name("lint-imports"))]
    run = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        path.relative_to(ROOT) for path in SOURCES if path.read_text().strip() and not ast.get_docstring(parsed(path))
    ]
    assert silent == []


def test_no_file_holds_two_concepts() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := line_count(path)) > LONGEST_FILE}
    assert long == {}


@pytest.mark.parametrize("folder", ["policy", "control"])
def test_the_core_knows_no_clock_no_chance_and_no_world(folder: str) -> None:
    """Also within functions, where the layers are not looked at."""
    forbidden = {
        "asyncio",
        "logging",
        "os",
        "random",
        "socket",
        "subprocess",
        "threading",
        "time",
        "torch",
        "vllm",
        "zmq",
    }
    found = {
        str(path.relative_to(ROOT)): names
        for path in SOURCES
        if folder in path.relative_to(ROOT / "src" / "llumnix").parts and (names := imported(path) & forbidden)
    }
    assert found == {}


def test_nothing_but_the_adapter_imports_the_engine() -> None:
    knows = {str(path.relative_to(ROOT / "src" / "llumnix").parent) for path in SOURCES if "vllm" in imported(path)}
    assert knows <= {"engine/vllm", "server"}


def test_only_the_ray_launcher_and_its_actors_import_ray_and_nobody_imports_them() -> None:
    """They run in processes of their own, so that nothing else needs Ray or waits for its import."""
    theirs = {"launch_ray", "ray_tenant", "ray_room"}
    assert {path.stem for path in SOURCES if "ray" in imported(path)} == theirs
    importers = {
        path.stem for path in SOURCES if imported_modules(path) & {f"llumnix.cluster.{name}" for name in theirs}
    }
    assert importers <= theirs


def test_dependencies_of_the_base_package_are_all_named() -> None:
    """What is imported at the top of a module must be installed with the package, unless an extra brings it along."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    named = {name.lower() for name in re.findall(r'^    "([A-Za-z0-9_-]+)', pyproject, re.MULTILINE)}
    distributions = {"zmq": "pyzmq"}
    with_the_engine = ("engine/vllm", "server", "cluster/launch_ray", "cluster/ray_")
    for path in SOURCES:
        where = str(path.relative_to(ROOT / "src" / "llumnix"))
        if where.startswith(with_the_engine):
            continue
        for name in imported_at_the_top(path) - set(sys.stdlib_module_names) - {"llumnix"}:
            assert distributions.get(name, name) in named, f"{where} imports {name}, which pyproject.toml does not name"


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


def imported(path: Path) -> set[str]:
    return packages(ast.walk(parsed(path)))


def imported_at_the_top(path: Path) -> set[str]:
    return packages(parsed(path).body)


def imported_modules(path: Path) -> set[str]:
    return {node.module for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom) and node.module}


def packages(nodes: Iterable[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names
