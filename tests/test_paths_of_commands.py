"""Every path that a command takes, with what is none of its kind there: one sentence, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from llumnix.cli import main
from odd_paths import odd_path

pytestmark = pytest.mark.io

SIMULATE = "simulate --instances 2 --out {out}"
READ = {
    "trace of rows": (f"{SIMULATE} --workload", "x.csv"),
    "trace of lines": (f"{SIMULATE} --workload", "x.jsonl"),
    "zipped trace": (f"{SIMULATE} --workload", "x.csv.gz"),
    "other zipped trace": (f"{SIMULATE} --workload", "x.csv.xz"),
    "trace to replay": ("bench --url http://127.0.0.1:9 --out {out} --workload", "x.csv"),
    "profile": (f"{SIMULATE} --workload S-S?requests=2 --profile", "x.toml"),
    "classes": (f"{SIMULATE} --workload S-S?requests=2 --classes", "x.yaml"),
    "classes to serve": ("serve --port 0 --classes", "x.yaml"),
    "flags": ("serve --port 0 --config", "x.yaml"),
    "recorded run": ("whatif", "x"),
    "recorded run to export": ("record export --format mooncake", "x"),
    "decision log": ("explain r --log", "x"),
    "runs of a figure": ("reproduce 10 --out {out} --records", "x"),
}
WRITTEN = {
    "simulated records": ("simulate --instances 2 --workload S-S?requests=2 --out", "x"),
    "measured records": ("bench --url http://127.0.0.1:9 --workload S-S?requests=2 --out", "x"),
    "decisions": (f"{SIMULATE} --workload S-S?requests=2 --decision-log", "x"),
    "recording": ("serve --port 0 --record", "x"),
    "decisions of a server": ("serve --port 0 --decision-log", "x"),
    "logs": ("serve --port 0 --log-dir", "x"),
}


def refused(words: str, path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What it said."""
    command = words.format(out=out).split()
    assert main([*command, str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("llumnix: ")
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("there", ["nothing", "a folder", "empty", "binary", "not UTF-8", "below a file"])
@pytest.mark.parametrize("what", READ)
def test_what_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, there: str) -> None:
    words, name = READ[what]
    path = odd_path(tmp_path / name, there)
    assert str(path) in refused(words, path, tmp_path / "out", capsys)


@pytest.mark.parametrize("what", WRITTEN)
def test_what_cannot_be_written_is_told_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    words, name = WRITTEN[what]
    (tmp_path / "file").touch()
    path = tmp_path / "file" / name
    assert str(path) in refused(words, path, tmp_path / "out", capsys)
