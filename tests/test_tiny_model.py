"""The tiny model, made for real once (a few seconds; torch runs in a child process)."""

from __future__ import annotations

import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llumnix import tiny_model
from llumnix.errors import UsageError

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(cache: Path) -> Path:
    return tiny_model.ensure(cache)


@pytest.mark.live
def test_appears_whole_and_is_made_once(cache: Path, model: Path) -> None:
    assert [path.name for path in cache.iterdir()] == [model.name]
    written = (model / "model.safetensors").stat().st_mtime_ns
    assert tiny_model.ensure(cache) == model
    assert (model / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.live
def test_has_a_large_window_and_a_chat_template(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    assert config["max_position_embeddings"] == 16384
    assert (model / "chat_template.jinja").exists() or "chat_template" in (model / "tokenizer_config.json").read_text()


@pytest.mark.live
def test_same_recipe_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    again = tiny_model.ensure(tmp_path)
    assert again.name == model.name
    assert (again / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_failure_is_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(UsageError, match="The tiny model could not be made"):
        tiny_model.ensure(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_left_who_was_killed_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny-unfinished-7").mkdir()
    monkeypatch.setattr(tiny_model, "_make_in_child", lambda folder, lock: (folder / "config.json").touch())
    made = tiny_model.ensure(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_who_is_still_at_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the model that it made is taken."""
    monkeypatch.setattr(tiny_model, "_make_in_child", lambda folder, lock: pytest.fail("it is there"))
    begun = tmp_path / "tiny-unfinished-7"
    begun.mkdir()
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(tiny_model.ensure, tmp_path)
        with pytest.raises(TimeoutError):
            waits.result(0.2)
        begun.rename(tmp_path / f"tiny-{tiny_model._recipe_hash()}")
        os.close(lock)
        assert [*tmp_path.iterdir()] == [waits.result(10)]


def test_who_hangs_at_it_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what he makes is left alone."""
    monkeypatch.setattr(tiny_model, "_LONGEST_MAKING_S", 0.2)
    monkeypatch.setattr(tiny_model, "_make_in_child", lambda folder, lock: None)
    begun = tmp_path / "tiny-unfinished-7"
    begun.mkdir()
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert tiny_model.ensure(tmp_path).is_dir()
    assert begun.is_dir()
    os.close(lock)


def test_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        tiny_model.ensure(tmp_path / "file")
