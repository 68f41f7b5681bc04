"""Metrics that several front ends count into files, on a disk that is full, and on one that becomes so."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
from prometheus_client import CollectorRegistry, Counter, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

pytest.importorskip("vllm")

from llumnix.engine.vllm.front_end.counts_on_disk import CountsOnDisk, count_into_files_with_room

MANY = 1000  # names, with which a file has to grow more than once


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "MmapedDict", values.MmapedDict)  # type: ignore[attr-defined]
    count_into_files_with_room()
    monkeypatch.setattr("prometheus_client.metrics.values.ValueClass", values.MultiProcessValue())  # type: ignore[no-untyped-call]
    yield tmp_path
    values._multi_process_cleanups.pop()()


def counter() -> Counter:
    return Counter("told", "Tokens that were told.", ["to"], registry=CollectorRegistry())


def seen(folder: Path) -> dict[str, float]:
    """By a front end that is asked for all."""
    samples: list[Sample] = [
        sample
        for family in MultiProcessCollector(CollectorRegistry(), str(folder)).collect()  # type: ignore[no-untyped-call]
        for sample in family.samples
    ]
    return {sample.labels["to"]: sample.value for sample in samples}


def full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_whatever_is_counted_has_its_room_before(folder: Path) -> None:
    """Without it, who counts is killed where the disk has none: a mapped page cannot be refused otherwise."""
    told = counter()
    for name in range(MANY):
        told.labels(f"{name}").inc(name)
    (file,) = folder.glob("counter_*.db")
    assert file.stat().st_size > MANY * 64
    assert file.stat().st_blocks * 512 >= file.stat().st_size
    assert seen(folder) == {f"{name}": name for name in range(MANY)}


def test_front_end_that_begins_on_a_full_disk_counts_for_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    told = counter()
    for name in range(MANY):
        told.labels(f"{name}").inc()
    told.labels("7").inc()
    assert told.labels("7")._value.get() == 2
    assert list(folder.iterdir()) == []
    assert seen(folder) == {}, "and nobody stumbles over what it left"


def test_disk_that_becomes_full_costs_what_is_counted_from_then_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = counter()
    told.labels("before").inc(3)
    monkeypatch.setattr(os, "posix_fallocate", full)
    for name in range(MANY):
        told.labels(f"{name}").inc()
    told.labels("before").inc(4)
    assert told.labels("before")._value.get() == 7
    assert told.labels(f"{MANY - 1}")._value.get() == 1
    assert seen(folder)["before"] == 3
    assert f"{MANY - 1}" not in seen(folder)


def test_one_that_only_reads_needs_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(folder / "counter_1.db")
    with closing(CountsOnDisk(file)) as written:
        written.write_value("a", 1.0, 0.0)  # type: ignore[no-untyped-call]
    monkeypatch.setattr(os, "posix_fallocate", full)
    with closing(CountsOnDisk(file, read_mode=True)) as read:
        assert list(read.read_all_values()) == [("a", 1.0, 0.0)]  # type: ignore[no-untyped-call]
