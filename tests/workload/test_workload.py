from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.errors import UsageError
from llumnix.types import HIGH, NORMAL
from llumnix.workload.workload import PAPER_TRACES, Workload, load_workload


def digest(workload: Workload) -> str:
    rows = [{name: getattr(request, name) for name in DIGESTED} for request in workload.requests]
    return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()[:16]


def test_spec_gives_what_it_says() -> None:
    workload = load_workload("poisson:rate=32,prompt=zipf128,output=exp64,requests=5000,high=0.1,seed=3")
    requests = workload.requests
    assert len(requests) == 5000
    assert 5000 / workload.duration_s == pytest.approx(32, rel=0.05)
    assert np.mean([r.prompt_tokens for r in requests]) == pytest.approx(128, rel=0.03)
    assert np.mean([r.output_tokens for r in requests]) == pytest.approx(64.5, rel=0.06)
    assert np.mean([r.priority == HIGH for r in requests]) == pytest.approx(0.1, abs=0.02)
    assert [r.id for r in requests] == sorted(r.id for r in requests)
    assert workload.seed == 3


DIGESTED = ("id", "arrival_s", "prompt_tokens", "output_tokens", "priority", "block_hashes")

DIGESTS = {
    "S-S": "c494c1c22c1b28b7",
    "M-M?cv=4&seed=1": "d638e9e24fa57f93",
    "ShareGPT": "ddd81c0d448b2716",
    "BurstGPT?high=0.1": "e3ddd0713f15fe23",
    "azure-conv?rate=20": "e5d3e5d67e3b3bb2",
    "mooncake-conv?limit=500&cap=4096": "a46468b54997d403",
    "gamma:rate=3,cv=2,prompt=exp100,output=uniform5-9": "2ac2a024fbcdffd5",
}


@pytest.mark.parametrize("text", DIGESTS)
def test_same_text_makes_the_same_requests_on_every_machine(text: str) -> None:
    """Made once. A NumPy release that turns the same bits into other numbers, which it may, shows up here."""
    assert digest(load_workload(text)) == DIGESTS[text]


def test_a_draw_for_one_purpose_never_shifts_another() -> None:
    plain = load_workload("poisson:rate=4,requests=50").requests
    varied = load_workload("gamma:rate=4,cv=3,requests=50,high=0.5,prompt=exp30").requests
    assert [r.output_tokens for r in plain] == [r.output_tokens for r in varied]
    assert [r.arrival_s for r in plain] == [
        r.arrival_s for r in load_workload("poisson:rate=4,requests=50,output=7").requests
    ]


def test_another_seed_makes_other_requests() -> None:
    assert load_workload("S-S?seed=1&requests=20") != load_workload("S-S?seed=2&requests=20")


def test_keywords_override_the_text() -> None:
    by_text = load_workload("S-S?rate=36&requests=30&seed=5").requests
    assert load_workload("S-S?rate=1&seed=9", rate=36, requests=30, seed=5).requests == by_text


words = st.sampled_from(
    ["poisson", "gamma", "S-S", "ShareGPT", "rate", "prompt", "high", "cv", "zipf128", "exp9", "x.csv"]
)
marks = st.sampled_from([":", "?", "=", ",", "&", "-", ".", "1", "0", "-5", "1e9", "\0", "é", " "])


@given(st.lists(words | marks, max_size=12).map("".join))
def test_any_text_is_a_workload_or_is_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert load_workload(text, requests=3).requests


@pytest.mark.parametrize("name", sorted(PAPER_TRACES))
def test_paper_traces_have_ten_thousand_requests_that_fit_one_instance(name: str) -> None:
    workload = load_workload(name)
    assert len(workload.requests) == 10_000
    assert 10_000 / workload.duration_s == pytest.approx(float(PAPER_TRACES[name]["rate"]), rel=0.05)
    assert max(r.prompt_tokens + r.output_tokens for r in workload.requests) <= 12_672
    assert max(max(r.prompt_tokens, r.output_tokens) for r in workload.requests) <= 6144


@pytest.mark.parametrize(("name", "count"), [("azure-code", 8819), ("azure-conv", 19366), ("mooncake-conv", 12031)])
def test_public_traces_come_with_the_package(name: str, count: int) -> None:
    requests = load_workload(name).requests
    assert len(requests) == count
    assert requests[0].arrival_s == 0
    assert 3400 < requests[-1].arrival_s < 3600


def test_trace_is_cut_and_then_stretched_to_the_rate() -> None:
    workload = load_workload("azure-conv?rate=10&limit=101")
    assert len(workload.requests) == 101
    assert workload.duration_s == pytest.approx(10.0)
    original = load_workload("azure-conv?limit=101")
    ratio = workload.duration_s / original.duration_s
    assert workload.requests[40].arrival_s == pytest.approx(original.requests[40].arrival_s * ratio)


def test_file_of_the_user_with_options(tmp_path: Path) -> None:
    path = tmp_path / "odd:name.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,priority\n0,100,10,-1\n2,100,10,0\n4,7,1,0\n")
    kept = load_workload(f"{path}?limit=2&scale=0.25")
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens, r.priority) for r in kept.requests] == [
        (0.0, 25, 3, HIGH),
        (2.0, 25, 3, NORMAL),
    ]
    assert {r.priority for r in load_workload(f"{path}?high=0").requests} == {NORMAL}
    assert {r.priority for r in load_workload(f"{path}?high=1").requests} == {HIGH}


def test_output_gives_way_when_a_request_is_too_long() -> None:
    workload = load_workload("uniform:rate=1,requests=1,prompt=900,output=500,total=1000")
    assert (workload.requests[0].prompt_tokens, workload.requests[0].output_tokens) == (900, 100)
    workload = load_workload("uniform:rate=1,requests=1,prompt=2000,output=500,total=1000")
    assert (workload.requests[0].prompt_tokens, workload.requests[0].output_tokens) == (999, 1)


def test_scaled_prompts_lose_their_content_ids_and_cut_ones_keep_them() -> None:
    assert load_workload("mooncake-conv?limit=1&cap=100").requests[0].block_hashes
    assert not load_workload("mooncake-conv?limit=1&scale=0.1").requests[0].block_hashes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "nonsense:rate=1",
        "no-such-file.csv",
        "nul\0.csv",
        "poisson:rate=0",
        "poisson:rate=-1",
        "poisson:rate=nan",
        "poisson:rate=inf",
        "poisson:rate=fast",
        "poisson:rate=1e-300",
        "poisson:requests=99999999999",
        "poisson:prompt=99999999999",
        "gamma:cv=1e-200",
        "poisson:seed=" + "9" * 5000,
        "azure-conv?scale=1e300",
        "poisson:requests=٣",
        "poisson:rate",
        "poisson:rate=",
        "poisson:rate=1,rate=2",
        "poisson:requests=10,limit=20",
        "poisson:requests=0",
        "poisson:requests=1e3",
        "poisson:speed=3",
        "poisson:seed=-1",
        "poisson:high=1.5",
        "poisson:high=-0.1",
        "gamma:cv=0",
        "S-S?total=1",
        "S-S?prompt=zipf99",
        "azure-conv?cv=2",
    ],
)
def test_nonsense_is_refused_with_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_workload(text)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_tenants_are_drawn_by_their_weights_and_shift_no_other_draw() -> None:
    plain = load_workload("S-S?requests=4000&high=0.1")
    shared = load_workload("S-S?requests=4000&high=0.1&tenants=alice*3+bob/batch*0.5+c.d@e-f_1")
    assert digest(shared) == digest(plain)
    counts = Counter((request.tenant, request.cls) for request in shared.requests)
    weights = {("alice", ""): 3.0, ("bob", "batch"): 0.5, ("c.d@e-f_1", ""): 1.0}
    assert counts.keys() == weights.keys()
    for who, weight in weights.items():
        assert counts[who] == pytest.approx(4000 * weight / 4.5, rel=0.15)


@pytest.mark.parametrize(
    "text", ["+", "alice+", "alice*0", "alice*-1", "a b", "a/b/c", "alice*x", "alice*1e3", "a" * 65]
)
def test_tenants_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="tenants must be names such as"):
        load_workload(f"S-S?requests=3&tenants={text}")


def test_tenants_of_a_trace_are_columns_of_it(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens,tenant,class\n0,1,1,alice,batch\n1,1,1,,\n")
    assert [(each.tenant, each.cls) for each in load_workload(str(trace)).requests] == [("alice", "batch"), ("", "")]
