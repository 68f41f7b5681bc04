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
PACKAGE = ROOT / "src" / "llumnix"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SHORT_ONES = [*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]

LONGEST_FILE, LONGEST_FUNCTION = 300, 40
"""Lines. The aim for files is 250: one that needs more holds two concepts."""

PURE = (
    *("policy", "control", "journal", "types.py", "config.py", "roles_config.py", "knob.py"),
    *("cluster/supervisor.py", "cluster/supervision.py", "cluster/roster.py", "cluster/processes.py"),
    *("cluster/instance_keeper.py", "cluster/front_end_keeper.py", "cluster/scheduler_keeper.py"),
    "cluster/ray/placement.py",
    *("sim/kernel.py", "sim/engine"),
)
"""Files and folders that know no clock, no chance, no world."""


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
    assert [named(path) for path in SHORT_ONES if line_count(path) > LONGEST_FILE] == []


def test_no_function_does_two_things() -> None:
    assert [name for path in SHORT_ONES for name in long_functions(path)] == []


def test_such_a_function_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class A:\n    def f(self):\n" + "        x = 1\n" * LONGEST_FUNCTION)
    assert [name.rpartition(":")[2] for name in long_functions(tmp_path / "a.py")] == ["f"]
    (tmp_path / "a.py").write_text("def f():\n" + "    x = 1\n" * (LONGEST_FUNCTION - 1))
    assert long_functions(tmp_path / "a.py") == []


@pytest.mark.parametrize("place", PURE)
def test_what_is_pure_knows_no_clock_no_chance_and_no_world(place: str) -> None:
    """Also within functions, where the layers are not looked at."""
    forbidden = {
        "asyncio",
        "logging",
        "os",
        "random",
        "ray",
        "signal",
        "socket",
        "subprocess",
        "threading",
        "time",
        "torch",
        "vllm",
        "zmq",
    }
    there = PACKAGE / place
    paths = [path for path in SOURCES if path == there or there in path.parents]
    assert paths, f"{place} is somewhere else now"
    assert {named(path): names for path in paths if (names := imported(path) & forbidden)} == {}


def test_every_pure_module_outside_policy_and_control_is_in_the_contract_of_imports() -> None:
    contract = (ROOT / "pyproject.toml").read_text().partition('name = "what is pure')[2].partition("forbidden_")[0]
    modules = ["llumnix." + place.removesuffix(".py").replace("/", ".") for place in PURE]
    assert [module for module in modules if f'"{module}"' not in contract] == []


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
    distributions = {"zmq": "pyzmq", "yaml": "pyyaml"}
    named -= {"matplotlib"}
    with_the_engine = ("engine/vllm", "cluster/ray", "transport/copy_kernel")
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


def test_no_name_of_a_class_or_type_stands_for_two_things() -> None:
    where: dict[str, list[str]] = {}
    for path in SOURCES:
        for name in types_of(path):
            where.setdefault(name, []).append(str(path.relative_to(ROOT / "src" / "llumnix")))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


def test_such_a_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "Row = int\n_Row = int\nROW: int = 1\nRowT = TypeVar('RowT')\nclass Run: ...\nAll: X = 1"
    )
    assert types_of(tmp_path / "a.py") == ["Row", "Run", "All"]


def types_of(path: Path) -> list[str]:
    """Classes and aliases of types that others may import; a variable of types means nothing by itself."""
    names = []
    for node in parsed(path).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and "TypeVar(" not in ast.unparse(node):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if re.fullmatch("[A-Z]+[a-z]\\w*", name)]


UNITS = ("_s", "_ms", "_us", "_blocks", "_tokens", "_bytes", "_steps", "seconds", "freeness", "per_minute")
MOMENTS = {"at", "now"}
"""When something happens, in seconds by the clock of whoever it happens to."""
OF_VLLM = {"timeout", "timestamp"}
"""Parameters of methods that override vLLM's."""
RATIOS = {
    *(
        "rate",
        "cv",
        "factor",
        "slowdown",
        "drag",
        "pace_gain",
        "time_scale",
        "watermark",
        "hashed_share",
        "bend",
        "step_cost_error",
    ),
    *("share", "weight", "memory", "memory_least", "memory_most", "busy", "score"),
    *("error", "doubt"),
}
COUNTS = {"instance_cpus", "mean_instances", "instance_hours"}
OF_WHAT_IS_MEASURED = {
    *("mean", "p50", "p80", "p95", "p99", "max", "shortest", "longest", "value", "x", "y", "y_low", "y_high", "offset"),
    *("measured", "predicted", "out", "default", "configured", "least", "most", "number", "cost", "before"),
    *("after", "source_after", "target_after", "give", "take", "above", "amount", "limit", "remaining", "work"),
    *("simulated", "low", "high", "lowest", "highest"),
}
"""Figures whose unit is that of what they describe: a distribution, a knob, a policy's rank, a point in a plot."""


def test_whoever_reads_json_of_others_knows_that_its_bytes_may_be_no_text() -> None:
    """For those msgspec raises UnicodeDecodeError, which is no DecodeError; both are ValueErrors."""
    blind = [
        f"{named(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"^ *except .*msgspec\.DecodeError(?!.*UnicodeDecodeError)", line)
    ]
    assert blind == []


def test_names_of_numbers_carry_units() -> None:
    """A duration is `…timeout_s` or what it is, an instant `…at_s`, `…until_s` or `deadline_s`."""
    plain = MOMENTS | OF_VLLM | RATIOS | COUNTS | OF_WHAT_IS_MEASURED
    found = {name for path in SOURCES for name in names_of_floats(path)}
    assert {name for name in found - plain if not name.endswith(UNITS)} == set()
    assert plain - found == set(), "these are listed and stand nowhere (any more)"


def test_a_deadline_is_an_instant_and_a_timeout_a_duration() -> None:
    sums = re.compile(
        r"(time\(\)|monotonic\(\)|\bat|now) \+ (self\.)?\w*deadline_s|(<=|>=|<|>) \w*timeout_s\b.*(monotonic|time)\(\)"
    )
    assert [str(path) for path in SOURCES if sums.search(path.read_text())] == []


def names_of_floats(path: Path) -> Iterable[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named = [(node.target.id, node.annotation)]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            named = [(one.arg, one.annotation) for one in arguments if one.annotation is not None]
        else:
            continue
        yield from (name for name, kind in named if ast.unparse(kind) in ("float", "float | None"))


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


def named(path: Path) -> str:
    return str(path.relative_to(ROOT)) if ROOT in path.parents else path.name


def long_functions(path: Path) -> list[str]:
    """FILE:NAME of each that is longer than it may be."""
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = {f"{named(path)}:{each.name}": (each.end_lineno or 0) - each.lineno + 1 for each in functions}
    return [name for name, count in lines.items() if count > LONGEST_FUNCTION]


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
