"""What benchmarks are told that they cannot work with is refused in a sentence, before hours go by."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import msgspec
import policy_comparison
import pytest
from frame.arguments import (
    at_least_one,
    file_in_a_folder,
    folder,
    not_negative,
    numbers,
    positive,
    whole,
    whole_numbers,
)
from frame.parts import part_of
from frame.verdict import ROOT

import whatif


@pytest.mark.parametrize("script", [*(ROOT / "benchmarks").rglob("*.py")], ids=lambda p: p.stem)
def test_no_benchmark_takes_just_any_number(script: Path) -> None:
    """`int` and `float` take −1, and `nan`."""
    taken = [
        ast.unparse(word.value)
        for call in ast.walk(ast.parse(script.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        for word in call.keywords
        if word.arg == "type"
    ]
    assert not {"int", "float"} & set(taken)


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (at_least_one, {"1": 1, "20": 20}, ("0", "-1", "1.5", "x", "", "²")),
        (whole, {"0": 0, "7": 7}, ("-1", "0.0", "x", "")),
        (positive, {"0.5": 0.5}, ("0", "-1", "nan", "inf", "x", "")),
        (not_negative, {"0": 0.0, "2": 2.0}, ("-1", "nan", "inf", "x", "")),
        (numbers, {"2,3.5": (2.0, 3.5)}, ("", "2,", "x", "2,0")),
        (whole_numbers, {"64,128": (64, 128)}, ("", "64,x", "64,0")),
        (folder, {str(ROOT): ROOT}, (__file__, f"{__file__}/in")),
        (file_in_a_folder, {__file__: Path(__file__)}, ("/no/such/folder/file", str(Path(__file__).parent))),
    ],
)
def test_numbers_are_what_their_types_say(
    parse: Callable[[str], object], good: dict[str, object], bad: tuple[str, ...]
) -> None:
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


@pytest.mark.parametrize(
    ("script", "words", "sentence"),
    [
        ("policy_comparison", "--policies llumnix-paper", "--policies must have llumnix"),
        ("policy_comparison", "--policies llumnix best", "invalid choice: 'best'"),
        ("policy_comparison", "--traces azure-code --seeds 4", "azure-code has 3 parts"),
        ("policy_comparison", f"--records {__file__}", "is no file of results"),
        ("roles", "--systems 4P", "--systems must have adaptive"),
        ("roles", "--systems adaptive 40P", "'40P' is none of adaptive"),
        ("roles", "--cells 9", "invalid choice: 9"),
        ("roles", "--cells 0 --seeds 9", "azure-conv has"),
        ("admission", "--seeds 7", "azure-conv has 6 parts of 3000 requests"),
        ("straggling", "--seeds 10", "azure-conv has 9 parts of 2000 requests"),
        ("placement", "--traces mooncake --seeds 5", "mooncake-conv has 4 parts of 2500 requests"),
        ("placement", "--traces azure-code --seeds 4", "azure-code has 3 parts"),
        ("predicted", "--rates x --out here", "argument --rates"),
        ("migration_downtime", "--lengths 64,x", "argument --lengths"),
        ("gpu_kv", "--device cpu --blocks 63", "--blocks must be at least 64"),
        ("gpu_kv", f"--device cpu --out {__file__}", "can be no folder"),
        ("gpu_proof", f"--device cpu --out {__file__}", "can be no folder"),
    ],
)
def test_what_it_would_end_with_after_hours_is_said_at_once(
    script: str, words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [f"{script}.py", *words.split()])
    with pytest.raises(SystemExit) as ended:
        import_module(script).main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_each_seed_has_another_part_of_a_recorded_trace_at_the_rate_that_is_asked() -> None:
    parts = [part_of("azure-code", seed, 1000, rate=4.0) for seed in range(8)]
    assert len({tuple((row.prompt_tokens, row.output_tokens) for row in part) for part in parts}) == 8
    for part in parts:
        assert part[0].arrival_s == 0.0
        assert part[-1].arrival_s == pytest.approx(999 / 4.0)
    with pytest.raises(ValueError, match="none for seed 8"):
        part_of("azure-code", 8, 1000, rate=4.0)


def test_recordings_of_another_load_or_pace_are_not_taken_for_this_ones() -> None:
    usual = {"rate": 3.5, "requests": 520, "step_ms": 20.0, "token_ms": 0.2}
    others = [usual | {name: 2 * value} for name, value in usual.items()]
    assert len({whatif._load(argparse.Namespace(**told)) for told in (usual, *others)}) == 5


def test_results_of_fewer_requests_or_from_before_they_said_how_many_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["policy_comparison.py", "--records", str(tmp_path / "results")])
    run = policy_comparison._runs(policy_comparison._parse())[0]
    kept = [msgspec.structs.replace(run, requests=requests) for requests in (0, 100, run.requests)]
    results = [policy_comparison.Result(one, {}, 1.0, 0, 0) for one in kept]
    rows = [msgspec.to_builtins(result) for result in results]
    del rows[0]["run"]["requests"]
    (tmp_path / "results").write_bytes(msgspec.json.encode(rows))
    arguments = policy_comparison._parse()
    assert arguments.done == results
    assert {result.run for result in arguments.done} & set(policy_comparison._runs(arguments)) == {run}
