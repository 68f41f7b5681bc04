"""What all instances are forked with, and what each makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.config import LoadConfig, ParallelConfig
from vllm.model_executor.model_loader.weight_cache.ipc_loader import IpcModelLoader
from vllm.model_executor.model_loader.weight_cache.protocol import get_socket_dir
from vllm.utils import torch_utils

from llumnix import tiny_model
from llumnix.cluster.forking import keep_temporary_files_in
from llumnix.cluster.run_dir import remove
from llumnix.engine.port import ONE_THREAD_TO_FORK
from llumnix.engine.vllm import boot
from llumnix.engine.vllm.apart import (
    count_front_ends,
    set_apart,
    share_cached_weights,
    share_compiled_headers,
    share_cores,
)
from llumnix.errors import UsageError


def config(**given: Any) -> Any:
    usual = {
        "instance_id": "abc",
        "kv_events_config": None,
        "kv_transfer_config": None,
        "ec_transfer_config": None,
        "parallel_config": SimpleNamespace(data_parallel_index=0, data_parallel_rank_local=None),
        "profiler_config": SimpleNamespace(torch_profiler_dir="", proton_profiler_dir=""),
        "compilation_config": SimpleNamespace(debug_dump_path=None),
    }
    return SimpleNamespace(**usual | given)


def instance(config: Any, name: str, slot: int) -> Any:
    """As the instance sees the configuration."""
    set_apart(config, SimpleNamespace(id=name, slot=slot))  # type: ignore[arg-type]
    return config


def test_names_are_never_those_of_another_instance_nor_of_the_one_before_it() -> None:
    transfer = [SimpleNamespace(engine_id="engine") for _ in range(3)]
    incarnations = [("i0", 0), ("i1", 1), ("i2", 1)]
    seen = [instance(config(kv_transfer_config=own), *who) for own, who in zip(transfer, incarnations, strict=True)]
    assert len({each.instance_id for each in seen}) == 3
    assert len({each.kv_transfer_config.engine_id for each in seen}) == 3


@pytest.mark.parametrize("name", ["kv_events_config", "kv_transfer_config", "ec_transfer_config"])
def test_what_opens_ports_counts_by_the_slot_and_uses_the_devices_that_are_visible(name: str) -> None:
    parallel = instance(config(**{name: SimpleNamespace(engine_id="engine")}), "i7", 3).parallel_config
    assert (parallel.data_parallel_index, parallel.data_parallel_rank_local) == (3, 0)


def test_compiled_code_is_shared_where_nothing_else_counts_by_the_slot() -> None:
    assert instance(config(), "i7", 3).parallel_config.data_parallel_index == 0


def test_weights_that_another_process_keeps_are_looked_for_where_it_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the instance's own temporary folder."""
    kept = get_socket_dir()
    loads = [LoadConfig(load_format="ipc_cache") for _ in range(2)]
    loads.append(LoadConfig(load_format="ipc_cache", model_loader_extra_config={"socket_dir": "/mine"}))
    loads.append(LoadConfig(load_format="ipc_cache", model_loader_extra_config={"socket_path": "/mine/socket"}))
    for load in loads[1:]:
        draft = SimpleNamespace(draft_load_config=loads[0])
        share_cached_weights(config(load_config=load, speculative_config=draft))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaders = [IpcModelLoader(load) for load in loads]
    assert [loader.socket_dir for loader in loaders] == [kept, kept, "/mine", None]
    assert loaders[3].socket_path == "/mine/socket"


def test_front_ends_share_what_they_may_take_of_a_gpu_and_no_instance_loses_cores_by_it() -> None:
    counted = {}
    for device in ("cuda", "cpu"):
        of_device = config(device_config=SimpleNamespace(device_type=device), parallel_config=ParallelConfig())
        count_front_ends(of_device, 4)
        counted[device] = of_device.parallel_config._api_process_count
    assert counted == {"cuda": 4, "cpu": 1}


def test_folders_have_the_instances_name() -> None:
    of_profiler = SimpleNamespace(torch_profiler_dir="gs://bucket/traces", proton_profiler_dir="")
    of_compiler = SimpleNamespace(debug_dump_path=Path("/dump"))
    seen = instance(config(profiler_config=of_profiler, compilation_config=of_compiler), "i3", 1)
    assert seen.profiler_config.torch_profiler_dir == "gs://bucket/traces/i3"
    assert seen.compilation_config.debug_dump_path == Path("/dump/i3")


@pytest.mark.parametrize(
    ("first", "slot", "own"),
    [("5000", 0, "5000"), ("5000", 3, "5096"), ("65500", 2, "65500"), ("tcp://x", 1, "tcp://x")],
)
def test_each_looks_for_free_ports_from_its_own_start(
    first: str, slot: int, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PORT", first)
    instance(config(), "i3", slot)
    import os

    assert os.environ["VLLM_PORT"] == own


HEADERS = "import torch._inductor.codecache as code; print(code._HEADER_DIR)"


def test_workers_of_an_instance_find_the_headers_that_those_of_another_have_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "torchinductor_0"
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared))
    keep_temporary_files_in(tmp_path / "i0.tmp")
    share_compiled_headers()
    worker = subprocess.run([sys.executable, "-c", HEADERS], capture_output=True, text=True, check=True, timeout=100)
    assert Path(worker.stdout.strip()).parent.resolve() == shared
    remove(tmp_path / "i0.tmp")
    assert shared.is_dir(), "which stays when the instance ends"


def test_headers_are_kept_with_the_instance_where_nothing_else_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    share_compiled_headers()
    assert list(tmp_path.iterdir()) == []


FORKED = """
import os, signal, torch
torch.randn(1000, 1000).exp().sum()  # enough for all threads that there are
if (child := os.fork()) == 0:
    signal.alarm(20)
    torch.set_num_threads(2)
    torch.randn(1000, 1000).exp().sum()
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_who_is_forked_may_have_threads_where_its_parent_has_none_beside_itself() -> None:
    """With two the parent would have used a pool, of which the child has no thread: it would wait for ever."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", FORKED], env=environment, check=False).returncode == 0


@pytest.mark.parametrize(("processes", "quota", "threads"), [(2, None, 4), (16, None, 1), (2, 4.0, 2)])
def test_cores_are_shared_out_while_weights_are_loaded(
    processes: int, quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more of them than a container may use."""
    made: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", made.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(torch_utils, "_cgroup_cpu_limit", lambda: quota)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    share_cores(processes)
    assert (made, os.environ["OMP_NUM_THREADS"]) == ([], "7"), "a user's wish"
    monkeypatch.setenv(torch_utils.OMP_NUM_THREADS_SET_BY_VLLM, "0")  # put back afterwards
    monkeypatch.setenv(ONE_THREAD_TO_FORK, "1")
    share_cores(processes)
    assert (made, os.environ["OMP_NUM_THREADS"]) == ([threads], str(threads))
    assert os.environ[torch_utils.OMP_NUM_THREADS_SET_BY_VLLM] == "1", "it counts no longer than that"


def test_instances_are_not_forked_from_a_process_that_uses_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would end with CUDA's words on that, and start again."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match="such as a plugin, uses CUDA at once"):
        boot.prepare(["--enforce-eager", "--dtype=float32"], str(tiny_model.ensure()))
