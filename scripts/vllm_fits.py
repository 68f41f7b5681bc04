"""Has a vLLM that is not installed all that Llumnix relies on? Asks its source alone, of which nothing is imported:

    python scripts/vllm_fits.py vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl    or a folder with vllm/ in it

Compared are the list of hooks for that version, the fields of vLLM's engine client, every name that the adapter
imports, and every attribute that its subclasses of vLLM's classes use. One line for each thing that does not fit, and
exit code 1. A last line, which a person has to judge, has the words that the adapter uses as attributes or arguments,
that the installed vLLM uses too, and that are nowhere in this one.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from llumnix.engine.vllm.front_end.hooks import client_fields
from llumnix.engine.vllm.hook import Hook, release_of
from llumnix.engine.vllm.hooks import HOOKS
from llumnix.vllm_words import version_in

ADAPTER = Path(__file__).parent.parent / "src" / "llumnix" / "engine" / "vllm"
_MOST_STEPS = 6
"""From where a name is asked for to where it is defined."""

_WHERE_WORDS_ARE = tuple(f"vllm/{name}/" for name in ("v1", "config", "entrypoints", "engine", "lora", "multimodal"))

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, eq=False)
class Source:
    """The Python files of a vLLM."""

    place: Path

    @cache  # noqa: B019 there is one
    def tree(self, module: str) -> ast.Module | None:
        path = module.replace(".", "/")
        for name in (f"{path}.py", f"{path}/__init__.py"):
            text = self._read(name)
            if text is not None:
                return ast.parse(text)
        return None

    def _read(self, name: str) -> str | None:
        if self.place.is_dir():
            file = self.place / name
            return file.read_text() if file.is_file() else None
        try:
            return self._wheel.read(name).decode()
        except KeyError:
            return None

    @cached_property
    def _wheel(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.place)

    @property
    def version(self) -> str:
        return version_in(self._read("vllm/_version.py") or "")

    def files(self) -> Iterator[str]:
        """The text of all that is vLLM's but for models and kernels."""
        if self.place.is_dir():
            names = [str(path.relative_to(self.place)) for path in (self.place / "vllm").rglob("*.py")]
        else:
            names = [name for name in self._wheel.namelist() if name.endswith(".py")]
        for name in names:
            if name.startswith(_WHERE_WORDS_ARE):
                yield self._read(name) or ""

    def find(self, module: str, name: str, steps: int = _MOST_STEPS) -> tuple[ast.AST, str] | None:
        """What a module's name means, and the module that it is defined in; through imports from elsewhere in vLLM."""
        tree = self.tree(module)
        if tree is None or not steps:
            return None
        for node in ast.walk(tree):
            if name in _defines(node):
                return node, module
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        origin = _absolute(node, module, self.tree(f"{module}.__init__") is not None)
                        return self.find(origin, alias.name, steps - 1) or self._module(f"{origin}.{alias.name}", node)
        return self._module(f"{module}.{name}", tree)

    def _module(self, module: str, node: ast.AST) -> tuple[ast.AST, str] | None:
        return (node, module) if module.startswith("vllm") and self.tree(module) is not None else None

    def member(self, module: str, qualified: str) -> ast.AST | None:
        """`Class.method` or `function`; methods of base classes, too."""
        first, _, rest = qualified.partition(".")
        found = self.find(module, first)
        if found is None or not rest:
            return found and found[0]
        for owner, _ in self.lineage(*found):
            for node in owner.body:
                if rest in _defines(node):
                    return node
        return None

    def lineage(self, node: ast.AST, module: str) -> Iterator[tuple[ast.ClassDef, str]]:
        """A class and those of its bases that are vLLM's."""
        if isinstance(node, ast.ClassDef):
            yield node, module
            for base in node.bases:
                if isinstance(base, ast.Subscript):  # Generic[…]
                    base = base.value
                if isinstance(base, ast.Name) and (found := self.find(module, base.id)) is not None:
                    yield from self.lineage(*found)


def _absolute(node: ast.ImportFrom, module: str, package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    up = parts[: len(parts) - node.level + package]
    return ".".join([*up, *([node.module] if node.module else [])])


def _defines(node: ast.AST) -> set[str]:
    if isinstance(node, Definition):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def of_hooks(source: Source, hooks: Iterable[Hook]) -> list[str]:
    release = release_of(source.version)
    return [
        problem
        for hook in hooks
        if hook.where.startswith("vllm.") and hook.concerns(release) and (problem := _of_hook(source, hook))
    ]


def _of_hook(source: Source, hook: Hook) -> str:
    module, _, name = hook.where.partition(":")
    node = source.member(module, name)
    if node is None and name.endswith(".__init__"):  # of a dataclass
        node = source.member(module, name.removesuffix(".__init__"))
    if node is None:
        return f"{hook.where} is missing; needed for: {hook.used_for}"
    names, required = _parameters(node)
    wanted = hook.parameters.split()
    lacking = [each for each in required if each not in wanted and each not in hook.by_name]
    if hook.parameters and (names[: len(wanted)] != wanted or lacking):
        return f"{hook.where} takes ({', '.join(names)}), not ({', '.join(wanted)}); needed for: {hook.used_for}"
    return ""


def _parameters(node: ast.AST) -> tuple[list[str], list[str]]:
    """All of them in order, and those without a default."""
    if isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
        named = [(each.target.id, each.value) for each in fields if isinstance(each.target, ast.Name)]
        return ["self", *(name for name, _ in named)], ["self", *(name for name, value in named if value is None)]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return [], []
    arguments = node.args
    plain = [each.arg for each in arguments.posonlyargs + arguments.args]
    by_name = [each.arg for each in arguments.kwonlyargs]
    rest = [each.arg for each in (arguments.vararg, arguments.kwarg) if each is not None]
    required = plain[: len(plain) - len(arguments.defaults)]
    required += [name for name, value in zip(by_name, arguments.kw_defaults, strict=True) if value is None]
    return plain + by_name + rest, required


def of_client_fields(source: Source) -> list[str]:
    theirs: set[str] = set()
    for name in ("MPClient", "AsyncMPClient"):
        node = source.member("vllm.v1.engine.core_client", f"{name}.__init__")
        theirs |= set() if node is None else _of_self(node, ast.Store)
    ours = client_fields(release_of(source.version))
    new, gone = sorted(theirs - ours), sorted(ours - theirs)
    return [f"the fields of its engine client changed: new {new}, gone {gone}"] if new or gone else []


def _of_self(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """Attributes of `self`, or for `Load` of `super()` too, that it stores or loads."""
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, context):
            owner = each.value.func if isinstance(each.value, ast.Call) and not each.value.args else each.value
            if isinstance(owner, ast.Name) and owner.id in ("self", "super"):
                found.add(each.attr)
    return found


def of_imports(source: Source, adapter: Path) -> list[str]:
    found = []
    for path in sorted(adapter.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                module = node.module or ""
                lost = [alias.name for alias in node.names if source.find(module, alias.name) is None]
                found += [f"{module}:{name} is missing; {path.relative_to(adapter)} imports it" for name in lost]
    return found


def of_subclasses(source: Source, adapter: Path) -> list[str]:
    """What they use of themselves and have neither from us nor from vLLM's class."""
    found = []
    for path in sorted(adapter.rglob("*.py")):
        tree = ast.parse(path.read_text())
        origins = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
            for alias in node.names
        }
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        for name, node in classes.items():
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            ours = [node, *(classes[base] for base in bases if base in classes)]
            theirs = [origin for base in bases if (origin := origins.get(base)) is not None]
            for attribute in sorted(_unexplained(source, ours, theirs) if theirs else ()):
                found.append(f"{theirs[0][1]}.{attribute} is missing; {name} in {path.relative_to(adapter)} uses it")
    return found


def _unexplained(source: Source, ours: list[ast.ClassDef], theirs: list[tuple[str | None, str]]) -> set[str]:
    known: set[str] = set(dir(object))
    used: set[str] = set()
    for node in ours:
        used |= _of_self(node, ast.Load)
        known |= _of_self(node, ast.Store).union(*map(_defines, node.body))
    for module, name in theirs:
        origin = source.find(module or "", name)
        for owner, _ in source.lineage(*origin) if origin is not None else ():
            known |= _of_self(owner, ast.Store).union(*map(_defines, owner.body))
    return used - known


def words_gone(source: Source, installed: Source, adapter: Path) -> list[str]:
    ours = set().union(*(_used_words(path.read_text()) for path in adapter.rglob("*.py")))
    then, now = (set().union(*map(_words, each.files())) for each in (installed, source))
    return sorted((ours & then) - now)


def _used_words(text: str) -> set[str]:
    """Names of attributes, and of arguments by name."""
    nodes = list(ast.walk(ast.parse(text)))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)} | {
        node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg
    }


def _words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w+", text))


def problems(source: Source) -> list[str]:
    return [
        *of_hooks(source, HOOKS),
        *of_client_fields(source),
        *of_imports(source, ADAPTER),
        *of_subclasses(source, ADAPTER),
    ]


def main(words: list[str]) -> int:
    source = Source(Path(words[0])) if len(words) == 1 else None
    if source is None or not source.place.exists() or not source.version:
        print("Say one vLLM: its wheel, or a folder with vllm/ in it.", file=sys.stderr)
        return 2
    found = problems(source)
    print(*found, sep="\n", end="\n" if found else "")
    installed = importlib.util.find_spec("vllm")
    if installed is not None and installed.origin is not None:
        there = Source(Path(installed.origin).parent.parent)
        print("gone since", there.version, "(or nobody's):", *words_gone(source, there, ADAPTER))
    hooks = sum(hook.concerns(release_of(source.version)) for hook in HOOKS)
    print(f"vLLM {source.version}: {hooks} hooks, {len(found) or 'nothing'} of what is relied on does not fit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
