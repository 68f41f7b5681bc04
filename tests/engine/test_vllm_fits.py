"""What the source of a vLLM tells of whether it fits, beside what the one that is imported tells."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

vllm = pytest.importorskip("vllm")

from llumnix.engine.vllm.hook import Hook, release_of  # noqa: E402
from llumnix.engine.vllm.hooks import HOOKS  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "scripts" / "vllm_fits.py"
INSTALLED = Path(vllm.__file__).parent.parent


@pytest.fixture(scope="module")
def fits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_fits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vllm_fits"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_installed_one_fits_by_its_source_too(fits: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert fits.main([str(INSTALLED)]) == 0
    count = sum(hook.concerns(release_of(vllm.__version__)) for hook in HOOKS)
    assert f"{count} hooks, nothing of what is relied on does not fit" in capsys.readouterr().out


def module(wheel: Path, **files: str) -> Path:
    """A wheel with these modules of vLLM."""
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("vllm/__init__.py", "")
        made.writestr("vllm/_version.py", "__version__ = version = '0.32.9'\n")
        for name, text in files.items():
            made.writestr(f"vllm/{name}.py", text)
    return wheel


THERE = """
from .b import Moved as Known
class Base:
    def inherited(self, a, b=1): ...
class Thing(Base):
    def method(self, first, *, second): ...
class Plain:
    field: int
    other: str = ""
"""


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (Hook("vllm.a:Thing.method", "self first", "x", ("second",)), ""),
        (Hook("vllm.a:Thing.inherited", "self a", "x"), ""),
        (Hook("vllm.a:Known.there", "self", "x"), ""),
        (Hook("vllm.a:Plain.__init__", "self field", "x"), ""),
        (Hook("vllm.a:Thing.gone", "self", "living", until=(0, 32)), ""),
        (Hook("torch:gone", "", "not asked"), ""),
        (Hook("vllm.a:Thing.method", "self first", "x"), "takes (self, first, second), not (self, first)"),
        (Hook("vllm.a:Thing.method", "self last", "x", ("second",)), "takes (self, first, second), not (self, last)"),
        (Hook("vllm.a:Thing.gone", "self", "living"), "is missing; needed for: living"),
        (Hook("vllm.b:Thing", "", "living"), "is missing; needed for: living"),
        (Hook("vllm.c:Thing", "", "living"), "is missing; needed for: living"),
    ],
)
def test_hook_is_found_or_missed(fits: ModuleType, tmp_path: Path, hook: Hook, problem: str) -> None:
    wheel = module(tmp_path / "w.whl", a=THERE, b="class Moved:\n    def there(self): ...\n")
    found = fits.of_hooks(fits.Source(wheel), [hook])
    assert len(found) == bool(problem)
    assert not problem or problem in found[0]


def test_what_the_adapter_imports_or_uses_of_a_base_class_is_missed(fits: ModuleType, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "ours.py").write_text(
        "from vllm.a import Thing, Vanished\n"
        "class Mixin:\n    def both(self): return self.inherited, self.lost\n"
        "class Ours(Mixin, Thing):\n    def go(self): self.own = self.both() or super().method(self.own, self.gone)\n"
    )
    source = fits.Source(module(tmp_path / "w.whl", a=THERE, b=""))
    assert fits.of_imports(source, adapter) == ["vllm.a:Vanished is missing; ours.py imports it"]
    assert fits.of_subclasses(source, adapter) == [
        "Thing.gone is missing; Ours in ours.py uses it",
        "Thing.lost is missing; Ours in ours.py uses it",
    ]


def test_words_that_are_nowhere_any_more_are_shown(fits: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text("thing.kept = f(gone=other.lost.ours)\n")
    old = fits.Source(module(tmp_path / "old.whl", **{"v1/a": "kept, gone, lost = 1, 2, 3"}))
    new = fits.Source(module(tmp_path / "new.whl", **{"v1/b": "kept = 1", "models/a": "gone = 1"}))
    assert fits.words_gone(new, old, tmp_path) == ["gone", "lost"]


def test_fields_of_the_client_are_compared(fits: ModuleType, tmp_path: Path) -> None:
    client = "class MPClient:\n    def __init__(self):\n        self.lamp = 1\nclass AsyncMPClient(MPClient): ...\n"
    source = fits.Source(module(tmp_path / "w.whl", **{"v1/engine/core_client": client}))
    (problem,) = fits.of_client_fields(source)
    assert problem.startswith("the fields of its engine client changed: new ['lamp'], gone ['_effective")


@pytest.mark.parametrize("words", [[], ["/nowhere"], ["."]])
def test_place_without_a_vllm(fits: ModuleType, words: list[str]) -> None:
    assert fits.main(words) == 2
