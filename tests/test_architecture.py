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


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for types alone count, too: whoever reads one file of a circle has to read them all."""
    assert in_circles({module_name(path): imports_of(path) for path in SOURCES}) == {}


def test_such_a_circle_is_found(tmp_path: Path) -> None:
    assert in_circles({"a": {"b"}, "b": {"c", "x"}, "c": {"b", "d"}, "d": set()}) == {"b": {"c"}, "c": {"b"}}
    (tmp_path / "a.py").write_text(
        "if TYPE_CHECKING:\n    from llumnix.sim import kernel\n\ndef f():\n    import llumnix.sim.world\n"
    )
    assert imports_of(tmp_path / "a.py") == {"llumnix.sim.kernel", "llumnix.sim.world"}


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
    knows = {path.relative_to(ROOT / "src" / "llumnix").parts[:2] for path in SOURCES if "vllm" in imported(path)}
    assert knows == {("engine", "vllm")}


def test_only_the_ray_launcher_and_its_actors_import_ray_and_nobody_imports_them() -> None:
    """They run in processes of their own, so that nothing else needs Ray or waits for its import."""
    theirs = {"launch", "tenant", "room"}
    importing = [path for path in SOURCES if "ray" in imported(path)]
    assert {path.stem for path in importing} == theirs
    assert {path.parent.name for path in importing} == {"ray"}
    importers = {
        str(path.relative_to(ROOT / "src" / "llumnix"))
        for path in SOURCES
        if imported_modules(path) & {f"llumnix.cluster.ray.{name}" for name in theirs}
    }
    assert importers <= {f"cluster/ray/{name}.py" for name in theirs}


def test_dependencies_of_the_base_package_are_all_named() -> None:
    """What is imported at the top of a module must be installed with the package, unless an extra brings it along."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    named = {name.lower() for name in re.findall(r'^    "([A-Za-z0-9_-]+)', pyproject, re.MULTILINE)}
    distributions = {"zmq": "pyzmq"}
    named -= {"matplotlib"}
    with_the_engine = ("engine/vllm", "cluster/ray")
    with_figures = ("report/figures", "paper/figures", "report/style", "report/timeline")
    for path in SOURCES:
        where = str(path.relative_to(ROOT / "src" / "llumnix"))
        if where.startswith((*with_the_engine, *with_figures)):
            continue
        for name in imported_at_the_top(path) - set(sys.stdlib_module_names) - {"llumnix"}:
            assert distributions.get(name, name) in named, f"{where} imports {name}, which pyproject.toml does not name"


def test_no_kind_of_command_event_or_message_is_dropped_in_silence() -> None:
    """Every match over classes ends in `assert_never`: a new kind is an error of types where nobody handles it."""
    found = {f"{path.relative_to(ROOT / 'src' / 'llumnix')}:{name}" for path in SOURCES for name in open_matches(path)}
    assert found == set()


def test_such_a_match_is_found(tmp_path: Path) -> None:
    body = "def f(x):\n    match x:\n        case int():\n            return 1\n"
    for last, names in (
        ("", ["f"]),
        ("        case _:\n            return 2\n", ["f"]),
        ("        case _:\n            assert_never(x)\n", []),
        ("        case y:\n            assert_never(y)\n", []),
    ):
        (tmp_path / "a.py").write_text(body + last)
        assert open_matches(tmp_path / "a.py") == names
    (tmp_path / "a.py").write_text("def f(x):\n    match x:\n        case 'a':\n            return 1\n")
    assert open_matches(tmp_path / "a.py") == []


def open_matches(path: Path) -> list[str]:
    """Functions with a match over classes that does not end in `assert_never`."""
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        function.name
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Match) and _is_over_classes(node) and not _ends_in_assert_never(node)
    ]


def _is_over_classes(match: ast.Match) -> bool:
    return any(isinstance(node, ast.MatchClass) for case in match.cases for node in ast.walk(case.pattern))


def _ends_in_assert_never(match: ast.Match) -> bool:
    last = match.cases[-1]
    catches_all = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None and last.guard is None
    return catches_all and ast.unparse(last.body[-1]).startswith("assert_never(")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


def in_circles(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Those that are in a circle or between two, and what of each other they import."""
    left = {name: others & imports.keys() - {name} for name, others in imports.items()}
    while True:
        used = {other for others in left.values() for other in others}
        outside = {name for name, others in left.items() if not others or name not in used}
        if not outside:
            return left
        left = {name: others - outside for name, others in left.items() if name not in outside}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path) for path in SOURCES}


def imports_of(path: Path) -> set[str]:
    """Our modules that it imports anywhere, for types alone included."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= full & MODULES or {node.module}
    return names & MODULES


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
