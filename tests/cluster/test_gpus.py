"""GPUs: which there are, who gets which, and what is refused before anything starts."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from c_stand_ins import built
from llumnix.cluster import devices, environment
from llumnix.cluster.environment import engine_flags, gpus_hold, instance_needs, parallel_starts
from llumnix.config import ClusterConfig
from llumnix.engine import gpus
from llumnix.engine.gpus import Gpu, GpuMachine
from llumnix.engine.port import InstanceSpec
from llumnix.errors import UsageError
from llumnix.flags import flag_value, parse_serve
from llumnix.types import InstanceId
from llumnix.wire.addresses import AddressBook

GIB = 1 << 30
NVML = Path(__file__).with_name("fake_nvml.c")


def machine(count: int, for_many: bool = True) -> GpuMachine:
    made = tuple(Gpu("NVIDIA H100", f"GPU-{index}", 80 * GIB, 79 * GIB, for_many) for index in range(count))
    return GpuMachine("580.65", (13, 0), made)


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "runs_on_cpu", lambda: False)
    monkeypatch.setattr(environment, "runs_on_cpu", lambda: False)


def why_refused(words: str, there: GpuMachine | None, **variables: str) -> str:
    arguments = parse_serve(words.split())
    try:
        devices.check_sharing(arguments)
        devices.check_gpus(arguments, there, variables)
    except UsageError as error:
        return str(error)
    return ""


def test_two_instances_where_there_is_one_gpu_are_told_what_to_do(cuda_build: None) -> None:
    why = why_refused("", machine(1))
    assert why == (
        "There are GPUs for 1 of 2 instances, which need one each, and 1 is visible: use --instances 1, "
        "or --instances-per-gpu 2 to have them share."
    )
    assert why_refused("--instances 1", machine(1)) == ""
    assert why_refused("--instances-per-gpu 2", machine(1)) == ""


@pytest.mark.parametrize(
    ("words", "count", "sentence"),
    [
        ("--instances 5", 4, "There are GPUs for 4 of 5 instances"),
        ("--instances 4", 4, ""),
        ("--instances 3 --tensor-parallel-size 2", 5, "There are GPUs for 2 of 3 instances, which need 2 each"),
        ("--instances 4 --tensor-parallel-size 2 --instances-per-gpu 2", 5, ""),
        ("--instances 1 --tensor-parallel-size 4", 2, "An instance needs 4 GPUs, one for each worker"),
        ("--instances 2 --scaling on --max-instances 8", 4, "use --max-instances 4"),
        ("--instances 2 --scaling advise --max-instances 8", 4, ""),
        ("--instances-per-gpu 2 --gpu-memory-utilization 0.9", 2, "say 0.45, or leave it out"),
        ("--instances-per-gpu 2 --gpu-memory-utilization 0.5", 2, "say 0.45, or leave it out"),
        ("--instances-per-gpu 2 --gpu-memory-utilization 0.4", 2, ""),
        ("--instances-per-gpu 2 --gpu-memory-utilization 0.5 --kv-cache-memory-bytes 8G", 2, ""),
        ("--instances-per-gpu 2 --launcher ray --tensor-parallel-size 2", 2, "Ray gives out parts of one GPU only"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_starts(
    cuda_build: None, words: str, count: int, sentence: str
) -> None:
    why = why_refused(words, machine(count))
    assert (sentence in why) if sentence else why == ""


@pytest.mark.parametrize(
    ("words", "most"),
    [
        ("", 4),
        ("--tensor-parallel-size 3", 1),
        ("--instances-per-gpu 2", 8),
        ("--launcher ray", None),
        ("--engine-module another", None),
        ("--tensor-parallel-size 0", 4),
    ],
)
def test_how_many_instances_the_gpus_hold(cuda_build: None, words: str, most: int | None) -> None:
    assert gpus_hold(parse_serve(words.split()), machine(4), {}) == most
    assert gpus_hold(parse_serve(words.split()), None, {}) is None


def test_what_was_looked_at_once_is_handed_on_to_the_launcher(cuda_build: None) -> None:
    assert devices.check_gpus(parse_serve(["--instances-per-gpu", "2"]), machine(4), {}) == 8
    assert devices.check_gpus(parse_serve(["--launcher", "ray"]), machine(4), {}) is None


def test_gpu_that_is_for_one_process_is_not_shared(cuda_build: None) -> None:
    assert "nvidia-smi --compute-mode=DEFAULT" in why_refused("--instances-per-gpu 2", machine(1, for_many=False))
    assert why_refused("--instances 1", machine(1, for_many=False)) == ""
    shared, alone = machine(2).gpus
    two = GpuMachine("580.65", (13, 0), (shared, replace(alone, for_many=False)))
    assert "nvidia-smi --compute-mode=DEFAULT" in why_refused("--instances-per-gpu 2", two)
    assert why_refused("--instances-per-gpu 2", two, CUDA_VISIBLE_DEVICES="0") == "", "the other one is not used"


def test_sharing_and_mapping_are_nothing_for_a_cpu() -> None:
    assert why_refused("--instances-per-gpu 2", None).startswith("--instances-per-gpu is for GPUs")
    with pytest.raises(UsageError, match="--transports cuda is for GPUs"):
        devices.check_ways(["cuda"])


def test_nixl_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install nixl-cu13==1\.5\.1, or leave it out of --transports"):
        devices.check_ways(parse_serve(["--transports", "nixl"]).migration.ways)


def test_transport_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match="--transports knows same-gpu, cuda, nixl, host, not pigeon"):
        parse_serve(["--transports", "cuda,pigeon"])


@pytest.mark.parametrize(
    ("words", "alone", "shared"),
    [
        ("", [], ["same-gpu"]),
        ("--transports host", [], []),
        ("--transports=", [], []),
        ("--transports same-gpu,nixl", ["nixl"], ["same-gpu", "nixl"]),
        ("--transports nixl", ["nixl"], ["nixl"]),
        ("--transports cuda", ["cuda"], ["cuda"]),
        ("--transports nixl,cuda", ["nixl", "cuda"], ["nixl", "cuda"]),
    ],
)
def test_within_a_gpu_blocks_move_by_themselves_where_instances_share_one(
    words: str, alone: list[str], shared: list[str]
) -> None:
    assert spec_of(words).ways == alone
    assert spec_of(f"{words} --instances-per-gpu 2").ways == shared


def spec_of(words: str) -> InstanceSpec:
    arguments = parse_serve(words.split())
    return InstanceSpec(
        id=InstanceId("i0"),
        index=0,
        slot=0,
        device_slot=0,
        node="",
        book=AddressBook(run_dir="", launcher="", scheduler="", fronts=()),
        policy=arguments.policy,
        migration=arguments.migration,
        cluster=arguments.cluster,
        secret=b"",
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [("host,cuda", "--transports host stands alone"), ("same-gpu,cuda", "leave same-gpu out")],
)
def test_transports_that_contradict_each_other(words: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_serve(["--transports", words])


def test_what_nobody_named_is_nothing_to_refuse_on_a_cpu() -> None:
    devices.check_ways(parse_serve([]).migration.ways)


def test_without_a_driver_that_answers_vllm_says_what_is_wrong(cuda_build: None) -> None:
    assert why_refused("", None) == ""


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        (None, ["0", "1", "2", "3"]),
        ("2,0", ["2", "0"]),
        (" 2 , 03, ", ["2", "3"]),
        ("", []),
        (" ", []),
        (",", []),
        ("GPU-1, GPU-3", ["GPU-1", "GPU-3"]),
        ("MIG-1a,MIG-2b,MIG-3c,MIG-4d,MIG-5e", ["MIG-1a", "MIG-2b", "MIG-3c", "MIG-4d", "MIG-5e"]),
        ("MIG-GPU-1/1/0", ["MIG-GPU-1/1/0"]),
    ],
)
def test_devices_that_are_visible(words: str | None, devices: list[str]) -> None:
    assert gpus.visible({} if words is None else {gpus.VISIBLE: words}, machine(4)) == devices


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("0,4", "names 4, and there are 4 GPUs, which count from 0"),
        ("-1", "hides what stands behind -1"),
        ("0,-1,1", "hides what stands behind -1"),
        ("0,,1", "has nothing between two commas"),
        ("one", "names one, which is neither a number nor the UUID of a GPU"),
        ("NoDevFiles", "names NoDevFiles"),
        ("+1", r"names \+1"),
        ("0 1", "names 0 1"),
        ("\u0663", "names \u0663"),
        ("1,1", "a GPU twice"),
        ("1,01", "a GPU twice"),
        ("GPU-1,GPU-1", "a GPU twice"),
        ("MIG-1a,MIG-1a", "a GPU twice"),
        ("GPU-7", "the UUIDs of no GPUs here begin so"),
        ("GPU-", "the UUIDs of 4 GPUs here begin so"),
        ("0,GPU-1", "mixes numbers, UUIDs of GPUs"),
        ("GPU-1,MIG-1a", "mixes numbers, UUIDs of GPUs"),
    ],
)
def test_devices_of_which_cuda_would_make_something_else(words: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{gpus.VISIBLE}=.*{sentence}"):
        gpus.visible({gpus.VISIBLE: words}, machine(4))


def test_without_nvml_what_is_named_is_taken_at_its_word() -> None:
    assert gpus.visible({}, None) is None
    assert gpus.visible({gpus.VISIBLE: "2,3"}, None) == ["2", "3"]
    assert gpus.visible({gpus.VISIBLE: "GPU-7"}, None) == ["GPU-7"]
    with pytest.raises(UsageError, match="a GPU twice"):
        gpus.visible({gpus.VISIBLE: "2,2"}, None)


def test_parts_of_gpus_are_for_engines_with_one_worker(cuda_build: None) -> None:
    parts = {gpus.VISIBLE: "MIG-1a,MIG-2b"}
    assert why_refused("--instances 2", machine(1), **parts) == ""
    assert "one part of a GPU (MIG) only" in why_refused("--instances 1 --tensor-parallel-size 2", machine(1), **parts)


def test_memory_is_divided_unless_the_user_does(cuda_build: None) -> None:
    def share(words: str) -> str | None:
        return flag_value(engine_flags(parse_serve(words.split())), "--gpu-memory-utilization")

    assert share("--instances-per-gpu 2") == "0.450"
    assert share("--instances-per-gpu 3") == "0.300"
    assert share("--instances-per-gpu 2 --gpu-memory-utilization 0.4") == "0.4"
    assert share("--instances-per-gpu 2 --kv-cache-memory-bytes 8G") == "0.450", "else the second wants 92 % to be free"
    assert share("") is None


def test_ray_sets_part_of_a_gpu_aside_and_starts_one_at_a_time(cuda_build: None) -> None:
    shared = ClusterConfig(launcher="ray", instances_per_gpu=2)
    assert instance_needs(shared, workers=1)["GPU"] == 0.5
    assert parallel_starts(shared) == 1
    assert parallel_starts(ClusterConfig(launcher="ray")) > 1000


@pytest.mark.io
def test_nvml_is_read_as_its_header_says(tmp_path: Path) -> None:
    there = gpus.installed(built(NVML, tmp_path / "libnvidia-ml.so.1"))
    assert there == GpuMachine(
        "580.65.06",
        (13, 0),
        (
            Gpu("NVIDIA H100", "GPU-0", 80 * GIB, 60 * GIB, True),
            Gpu("NVIDIA H100", "GPU-1", 80 * GIB, 60 * GIB, False, divided=True),
        ),
    )


def test_only_a_gpu_that_is_whole_and_there_is_known_by_its_uuid() -> None:
    there = machine(3)
    parted = GpuMachine(there.driver, there.cuda, (*there.gpus[:2], replace(there.gpus[2], divided=True)))
    assert [gpus.whole(uuid, parted) for uuid in ("0", "1", "2", "3", "", "GPU-1", "MIG-1")] == [
        *("GPU-0", "GPU-1"),
        *[""] * 5,
    ]
    assert gpus.whole("0", None) == ""
    assert gpus.whole("0", GpuMachine(there.driver, there.cuda, there.gpus[:1] * 2)) == "", "which of them?"


def test_no_driver() -> None:
    assert gpus.installed("libno-such-library.so.1") is None
