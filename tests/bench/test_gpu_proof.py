"""What `benchmarks/gpu_proof.py` makes of what it measures, and of parts that fail: without a server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import gpu_proof
import pytest
from _downtime_figures import Figures
from drain import differing_tokens
from frame.verdict import Figure
from proof import told
from proof.site import ON_CPU, ON_GPU, Site
from proof.sizes import MODELS, ModelSize
from proof.speed import profile_command


def site(out: Path, *, on_gpu: bool = False) -> Site:
    return Site(ModelSize("llama-7b", on_gpu), replace(ON_GPU if on_gpu else ON_CPU, lengths=(256, 8192)), out)


def measured(length: int, downtime_s: float = 0.005) -> Figures:
    return Figures(
        migration=[downtime_s] * 4,
        told=[downtime_s] * 4,
        step=[0.02] * 4,
        blocking=[0.002 * length] * 4,
        recompute=[0.01 * length] * 2,
        neighbours_off=[0.02] * 4,
        neighbours_on=[0.02] * 4,
        mib=[0.5 * length] * 4,
        gb_per_s=[4.0] * 4,
        stages=[3] * 4,
    )


def test_sizes_are_those_of_the_models() -> None:
    assert ModelSize("llama-7b", on_gpu=True).token_bytes == 512 << 10
    assert ModelSize("qwen3-8b", on_gpu=True).token_bytes == 144 << 10
    small = ModelSize("qwen3-8b", on_gpu=False).config
    assert (small["num_attention_heads"], small["num_key_value_heads"]) == (4, 1), "queries are grouped there, too"


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer_has_as_many_words_as_the_model(name: str, tmp_path: Path) -> None:
    size = ModelSize(name, on_gpu=False)
    size._write(tmp_path)
    words = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(words.values()) == list(range(size.config["vocab_size"]))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_profile_says_of_the_server_what_it_was_started_with(on_gpu: bool, tmp_path: Path) -> None:
    here = site(tmp_path, on_gpu=on_gpu)
    with here.size.engine_flags() as served:
        told = profile_command(here, tmp_path / "profile.toml")
    for flag in ("--max-num-seqs", "--max-num-batched-tokens"):
        assert served[served.index(flag) + 1] == told[told.index(flag) + 1]


def test_what_moves_cost_is_told_beside_the_paper_with_goals_on_a_gpu_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = site(tmp_path, on_gpu=True)
    for length in here.amount.lengths:
        here.by_length[length] = measured(length)
    figures = {figure.name: figure for figure in told.of_moves(here)}
    assert figures["downtime: blocking / move at 8192"].measured == pytest.approx(0.002 * 8192 / 0.005)
    assert not any(figure.missed for figure in figures.values())
    assert "1682" in capsys.readouterr().out, "the paper's blocking copy of 8,192 tokens"
    here.by_length[8192] = measured(8192, downtime_s=1.0)
    assert {figure.name for figure in told.of_moves(here) if figure.missed} >= {"downtime: blocking / move at 8192"}
    slow = site(tmp_path)
    slow.by_length |= here.by_length
    assert not any(figure.missed for figure in told.of_moves(slow)), "on a CPU nothing is to be reached"


def test_lengths_that_were_not_measured_are_missed(tmp_path: Path) -> None:
    here = site(tmp_path)
    assert [figure.missed for figure in told.of_moves(here)] == [True]
    here.by_length[256] = measured(256)
    assert "downtime: lengths that were measured" in {each.name for each in told.of_moves(here) if each.missed}


def test_moves_that_skipped_blocks_are_missed(tmp_path: Path) -> None:
    here = site(tmp_path)
    here.by_length |= {256: measured(256), 8192: measured(256)}
    assert "downtime: moves that copied everything" in {each.name for each in told.of_moves(here) if each.missed}


def test_all_of_it_is_written(tmp_path: Path) -> None:
    here = site(tmp_path / "out")
    here.by_length |= {length: measured(length) for length in here.amount.lengths}
    told.write(here, [Figure("drain: moved", 50)])
    words = json.loads((tmp_path / "out" / "gpu_proof.json").read_text())
    assert words["figures"][0]["measured"] == 50
    assert words["by_length"]["8192"]["blocking"] == [0.002 * 8192] * 4
    assert (tmp_path / "out" / "gpu_proof.png").stat().st_size > 1000


async def _fails(_: Site) -> list[Figure]:
    raise AssertionError("ended with 3 pieces")


async def _is_cut_short(_: Site) -> list[Figure]:
    return [Figure("drain: differing tokens", differing_tokens([[1, 2]], [[1]]))]


async def _hangs(_: Site) -> list[Figure]:
    await asyncio.sleep(3600)
    return []


@pytest.mark.parametrize(
    ("part", "said"), [(_fails, "ended with 3 pieces"), (_is_cut_short, "ValueError"), (_hangs, "TimeoutError")]
)
async def test_a_part_that_fails_or_takes_too_long_is_told_and_the_next_one_runs(
    part: gpu_proof.Run, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed, took = await gpu_proof.run_part("kill", part, site(tmp_path), limit_s=1.0)
    assert (failed.name, failed.missed, took.missed) == ("kill: failed", True, False)
    assert said in capsys.readouterr().out


async def test_a_part_for_which_no_time_is_left_is_no_success(tmp_path: Path) -> None:
    (figure,) = await gpu_proof.run_part("kill", _fails, site(tmp_path), limit_s=0.5)
    assert (figure.name, figure.missed) == ("kill: not run, no time was left", True)
