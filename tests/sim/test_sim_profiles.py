"""Cost profiles: how well they fit what was published, and what a bad file is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llumnix.errors import UsageError
from llumnix.paper.points import curve, published_points
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.profiles.file import load_profile, parse_profile, profile_names, write_profile

FITS = {"a10-llama-7b": "7B", "4xa10-llama-30b": "30B"}


def worst(profile_ms: dict[float, float], model: str, metric: str, policy: str) -> float:
    """The largest relative difference to figure 10."""
    published = curve(published_points(10), model, metric, policy)
    return max(abs(profile_ms[x] / published[x].y - 1) for x in published)


LENGTHS = (256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)


@pytest.mark.parametrize("name", FITS)
def test_prefill_is_the_papers_recompute_within_5_percent(name: str) -> None:
    prefill = load_profile(name).prefill
    assert worst({x: prefill.step_ms(int(x)) for x in LENGTHS}, FITS[name], "Downtime", "Recompute") < 0.055


@pytest.mark.parametrize(("name", "error"), [("a10-llama-7b", 0.01), ("4xa10-llama-30b", 0.07)])
def test_decode_is_the_papers_decode_at_8k_tokens(name: str, error: float) -> None:
    decode = load_profile(name).decode
    steps = {x: decode.step_ms(int(8192 / x), 8192) for x in LENGTHS}
    assert worst(steps, FITS[name], "Decode Latency", "Normal") < error


@pytest.mark.parametrize(("name", "error"), [("a10-llama-7b", 0.08), ("4xa10-llama-30b", 0.15)])
def test_copying_is_the_papers_blocking_copy(name: str, error: float) -> None:
    profile = load_profile(name)
    copies = {x: profile.copy_s(int(x) // 16) * 1e3 for x in LENGTHS}
    assert worst(copies, FITS[name], "Downtime", "Blocking copy") < error


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_survives_writing_and_reading(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    write_profile(profile, tmp_path / "copy.toml")
    assert load_profile(str(tmp_path / "copy.toml")) == profile


def test_steps_between_two_batch_sizes_are_interpolated() -> None:
    decode = replace(load_profile("a10-llama-7b").decode, batch=(1, 3), batch_ms=(10.0, 20.0))
    assert [decode.batch_step_ms(size) for size in (1, 2, 3, 4)] == [10, 15, 20, 25]


def test_a_chunk_costs_more_behind_a_long_context() -> None:
    prefill = load_profile("a10-llama-7b").prefill
    whole = prefill.compute_ms(4096)
    assert prefill.compute_ms(2048) + prefill.compute_ms(2048, context=2048) == pytest.approx(whole)


def text(profile: Profile, tmp_path: Path) -> str:
    write_profile(profile, tmp_path / "p.toml")
    return (tmp_path / "p.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("per_token_ms = 0.2028\n", "", "lacks the field 'per_token_ms'"),
        ("origin =", "origins =", "lacks the field 'origin'"),
        ("total_blocks = 792", "total_blocks = 'many'", "must be a whole number"),
        ("total_blocks = 792", "total_blocks = 0", "total_blocks must be at least 1"),
        ("[host]", "[hosts]", "unknown field 'hosts'"),
        ("stage_ms", "phase_ms", "unknown field 'phase_ms'"),
        ('kind = "vllm-0.1"', 'kind = "orca"', "must be vllm-0.1 or vllm-1"),
        ("batch = [1, 2,", "batch = [2, 1,", "decode.batch must grow"),
        ("[memory]", "[memory", "not valid TOML"),
        ("base_ms = 5.6", "base_ms = inf", "must be a finite number"),
        ("message_ms = 1.0", "message_ms = nan", "must be a finite number"),
    ],
)
def test_a_broken_profile_gets_one_sentence(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    broken = text(load_profile("a10-llama-7b"), tmp_path).replace(old, new)
    with pytest.raises(UsageError, match=sentence) as caught:
        parse_profile(broken, "mine.toml")
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="a10-llama-7b"):
        load_profile("h9000")


def test_a_profile_that_is_no_text_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not a text file"):
        load_profile(str(tmp_path / "mine.toml"))
