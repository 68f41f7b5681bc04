from __future__ import annotations

import stat
from pathlib import Path

import pytest

from llumnix.cluster.run_dir import private_run_dir


@pytest.fixture(autouse=True)
def short_base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path_factory.mktemp("r")
    monkeypatch.setattr("llumnix.cluster.run_dir._base", lambda longest: base)
    return base


def test_is_private_and_goes_at_the_end(short_base: Path) -> None:
    with private_run_dir() as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (path / "socket").touch()
    assert list(short_base.iterdir()) == []


def test_goes_when_its_user_fails(short_base: Path) -> None:
    with pytest.raises(RuntimeError), private_run_dir():
        raise RuntimeError
    assert list(short_base.iterdir()) == []


def test_folder_of_a_killed_launcher_is_swept(short_base: Path) -> None:
    left = short_base / "llumnix-left"
    left.mkdir()
    (left / "lock").touch()
    (left / "i0").touch()
    with private_run_dir() as path:
        assert list(short_base.iterdir()) == [path]


def test_folder_in_use_is_left_alone(short_base: Path) -> None:
    with private_run_dir() as first, private_run_dir() as second:
        assert first != second
        assert sorted(short_base.iterdir()) == sorted([first, second])


def test_folder_that_is_not_ours_is_left_alone(short_base: Path) -> None:
    (short_base / "llumnix-notes").mkdir()
    with private_run_dir():
        pass
    assert [path.name for path in short_base.iterdir()] == ["llumnix-notes"]
