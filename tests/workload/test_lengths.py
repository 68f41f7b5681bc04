from __future__ import annotations

import numpy as np
import pytest

from llumnix.errors import UsageError
from llumnix.workload.lengths import DATASETS, Side, exponential, fixed, paper_zipf, parse_lengths, uniform

EVEN = (np.arange(200_000) + 0.5) / 200_000
"""Uniform numbers without noise: the distribution itself."""


def artifact_draws() -> tuple[np.ndarray, np.ndarray]:
    """The uniform numbers that the paper's generator used: NumPy's legacy generator, prompts first, then outputs."""
    legacy = np.random.RandomState(0xCADE)
    return legacy.random_sample(10_000), legacy.random_sample(10_000)


@pytest.mark.parametrize(
    ("mean", "draw", "sample_mean", "percentiles", "longest"),
    [
        (128, 0, 128.0, [38, 113, 413, 1464], 6144),
        (256, 0, 253.7, [32, 173, 1288, 4208], 6144),
        (512, 0, 512.7, [55, 582, 3113, 5166], 6144),
        (128, 1, 127.8, [35, 103, 411, 1540], 6144),
        (256, 1, 254.7, [30, 175, 1350, 4295], 6144),
        (512, 1, 512.4, [52, 615, 3153, 5054], 5864),
    ],
)
def test_zipf_lengths_are_the_papers_given_the_papers_random_numbers(
    mean: int, draw: int, sample_mean: float, percentiles: list[int], longest: int
) -> None:
    lengths = paper_zipf(mean)(artifact_draws()[draw])
    assert lengths.mean() == pytest.approx(sample_mean, abs=0.06)
    assert np.percentile(lengths, [50, 80, 95, 99]) == pytest.approx(percentiles, abs=0.6)
    assert lengths.max() <= 6144
    assert abs(int(lengths.max()) - longest) <= 1


def test_zipf_1024_has_the_known_percentiles() -> None:
    lengths = paper_zipf(1024)(artifact_draws()[0])
    assert np.percentile(lengths, [50, 80, 95]) == pytest.approx([139, 1593, 5580], abs=0.6)


@pytest.mark.parametrize(
    ("prompt", "output", "longest_total"),
    [(128, 128, 6745), (256, 256, 9453), (512, 512, 10452), (128, 512, 8821), (512, 128, 9942)],
)
def test_longest_request_of_a_paper_trace_fits_one_instance(prompt: int, output: int, longest_total: int) -> None:
    first, second = artifact_draws()
    total = paper_zipf(prompt)(first) + paper_zipf(output)(second)
    assert total.max() == longest_total


@pytest.mark.parametrize("seed", range(5))
def test_every_seed_offers_the_same_zipf_load(seed: int) -> None:
    uniforms = np.random.Generator(np.random.PCG64(seed)).random(10_000)
    assert paper_zipf(128)(uniforms).mean() == pytest.approx(128, rel=0.03)


def test_zipf_of_no_requests_is_empty() -> None:
    assert paper_zipf(128)(np.array([])).tolist() == []


@pytest.mark.parametrize(("dataset", "side"), sorted(DATASETS))
def test_fitted_lengths_go_through_the_published_percentiles(dataset: str, side: Side) -> None:
    published = DATASETS[dataset, side]
    lengths = published.lengths(EVEN)
    wanted = [published.p50, published.p80, published.p95, published.p99]
    assert np.percentile(lengths, [50, 80, 95, 99]) == pytest.approx(wanted, abs=1.5)
    assert lengths.mean() == pytest.approx(published.mean, rel=0.01)
    assert lengths.min() >= 1
    assert lengths.max() <= 6144


def test_fixed_uniform_and_exponential_mean_what_they_say() -> None:
    assert set(fixed(7)(EVEN).tolist()) == {7}
    between = uniform(3, 5)(EVEN)
    assert sorted(set(between.tolist())) == [3, 4, 5]
    assert between.mean() == pytest.approx(4, abs=0.01)
    drawn = exponential(100)(EVEN)
    assert drawn.mean() == pytest.approx(100.5, rel=0.01)
    assert drawn.min() == 1
    assert exponential(100)(np.array([0.0, np.nextafter(1.0, 0.0)])).tolist() == [1, 3674]


@pytest.mark.parametrize("text", ["512", "uniform64-192", "exp128", "zipf128", "ShareGPT", "BurstGPT", "ZIPF512"])
def test_every_documented_name_is_understood(text: str) -> None:
    for side in ("prompt", "output"):
        assert parse_lengths(text, side)(EVEN[:10]).min() >= 1


@pytest.mark.parametrize(
    "text", ["", "zipf", "zipf100", "0", "uniform9-3", "uniform5", "12-13", "exp", "-4", "ShareGPT5", "1.5", "normal3"]
)
def test_anything_else_is_refused_with_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="prompt="):
        parse_lengths(text, "prompt")
