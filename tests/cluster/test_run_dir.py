from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from frame.server import wait_for

from llumnix.cluster.environment import child_environment
from llumnix.cluster.run_dir import _base, private_run_dir
from llumnix.errors import UsageError
from llumnix.flags import parse_serve


@pytest.fixture(autouse=True)
def short_base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path_factory.mktemp("r")
    monkeypatch.setattr("llumnix.cluster.run_dir._base", lambda longest: base)
    return base


@pytest.fixture
def mine() -> Iterator[Path]:
    """A file of shared memory."""
    path = Path("/dev/shm") / f"llumnix-test-{os.getpid()}"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


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
    left.mkdir(mode=0o700)
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


def test_folder_of_the_users_own_with_such_a_name_is_left_alone(short_base: Path) -> None:
    """A private one has the mode of a private one; those that people make have not."""
    notes = short_base / "llumnix-notes"
    notes.mkdir()
    notes.chmod(0o755)
    (notes / "lock").touch()
    with private_run_dir():
        pass
    assert [path.name for path in notes.iterdir()] == ["lock"]


def test_link_is_not_followed(short_base: Path, tmp_path: Path) -> None:
    """Where it leads may be a folder that others write to, with notes of theirs in it."""
    (tmp_path / "lock").touch()
    (short_base / "llumnix-link").symlink_to(tmp_path)
    with private_run_dir():
        pass
    assert (tmp_path / "lock").exists()
    assert (short_base / "llumnix-link").is_symlink()


def test_folder_that_others_may_write_to_is_left_alone(short_base: Path) -> None:
    left = short_base / "llumnix-shared"
    left.mkdir()
    left.chmod(0o777)
    (left / "lock").touch()
    with private_run_dir():
        pass
    assert left.exists()


def test_note_names_files_of_the_shared_memory_and_no_others(short_base: Path, tmp_path: Path, mine: Path) -> None:
    precious = tmp_path / "precious"
    precious.touch()
    left = short_base / "llumnix-left"
    left.mkdir(mode=0o700)
    (left / "lock").touch()
    names = [str(precious), f"../..{precious}", ".", "..", "", "a\0b", "not-there", mine.name]
    (left / "shared-memory.1").write_text("\n".join(names))
    elsewhere = tmp_path / "note"
    elsewhere.write_text(mine.name)
    (left / "shared-memory.2").symlink_to(elsewhere)
    (left / "shared-memory.3").write_bytes(b"\xff\xfe")
    (left / "shared-memory.4").mkdir()
    with private_run_dir():
        pass
    assert not left.exists()
    assert precious.exists()
    assert not mine.exists()


def test_folder_in_use_does_not_age(short_base: Path) -> None:
    """systemd-tmpfiles leaves alone what it cannot lock."""
    with private_run_dir() as path:
        folder = os.open(path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)


def test_full_disk_is_told_in_a_sentence(short_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with (
        pytest.raises(
            UsageError, match=f"^No folder for sockets can be made in {short_base}: no space left on device.$"
        ),
        private_run_dir(),
    ):
        pass


def test_full_tmp_is_no_matter_where_there_is_a_folder_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", full)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/dev/shm")
    assert _base(40) == Path("/dev/shm")
    assert "TORCHINDUCTOR_CACHE_DIR" not in child_environment(parse_serve([]), {})


def test_root_keeps_out_of_a_folder_that_goes_when_another_user_logs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert _base(200) == tmp_path
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert _base(200) == Path("/var/tmp")


@pytest.mark.live
def test_nothing_is_left_of_an_owner_that_is_killed(tmp_path: Path, mine: Path) -> None:
    """Not even until the next start."""
    code = f"""if True:
        import time
        from llumnix.cluster.run_dir import private_run_dir
        with private_run_dir(200) as path:
            (path / "i0.tmp").mkdir()
            (path / "i0.tmp" / "shared-memory.1").write_text("{mine.name}")
            print(path, flush=True)
            time.sleep(60)
    """
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as owner:
        assert owner.stdout is not None
        try:
            path = Path(owner.stdout.readline().strip())
            assert path.exists()
        finally:
            owner.kill()
    wait_for(lambda: not path.exists(), "the end of its folder")
    assert list(tmp_path.iterdir()) == []
    assert not mine.exists()
