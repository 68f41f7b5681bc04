"""By what a worker's blocks may be read, and what it says where that cannot be."""

from __future__ import annotations

import logging
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from llumnix.engine import gpus
from llumnix.engine.gpus import Gpu, GpuMachine
from llumnix.engine.vllm.instance import kv_pool
from llumnix.transport.choose import Address
from llumnix.transport.port import TransportError
from llumnix.wire.addresses import AddressBook

VIEWS = [torch.zeros(2, 4)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What CUDA calls the worker's own, whatever number it has there."""
    properties = SimpleNamespace(uuid="4a")
    machine = GpuMachine("580", (13, 0), (Gpu("H100", "GPU-3f", 1, 1, True), Gpu("H100", "GPU-4a", 1, 1, True)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(gpus, "installed", lambda: machine)
    monkeypatch.setattr(kv_pool, "CudaDriver", SimpleNamespace)
    return properties


class Mapped:
    """Says what it is made with."""

    def __init__(self, _views: Any, _driver: Any, *, gpu: str, between_gpus: bool) -> None:
        self.made = (gpu, between_gpus)
        if not (gpu or between_gpus):
            raise TransportError("which GPU this is cannot be told")


@pytest.mark.parametrize(
    ("ways", "uuid", "made"),
    [
        (["same-gpu"], "4a", [("GPU-4a", False)]),
        (["cuda"], "4a", [("GPU-4a", True)]),
        (["cuda"], "a part's", [("", True)]),
        (["same-gpu"], "a part's", []),
        (["same-gpu"], None, []),
        ([], "4a", []),
    ],
)
def test_who_reads_a_gpu(
    device: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ways: list[str],
    uuid: str | None,
    made: list[tuple[str, bool]],
) -> None:
    monkeypatch.setattr(kv_pool, "MappedMemory", Mapped)
    device.uuid = uuid
    if uuid is None:  # an older PyTorch
        del device.uuid
    readers: Any = kv_pool._readers(VIEWS, ways)
    assert [reader.made for reader in readers] == made
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == (["no block moves by same-gpu here: which GPU this is cannot be told"] if ways and not made else [])


def test_as_many_requests_come_at_once_as_may_while_as_many_are_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 20
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(kv_pool, "kv_views", lambda _: [torch.zeros(2 * most, 4)])
    monkeypatch.setattr(kv_pool, "_fingerprint", lambda *_: "x")
    book = AddressBook(run_dir="", launcher="", scheduler="", fronts=())
    transport = kv_pool.open_transport(SimpleNamespace(model_runner=None), book, b"0" * 16, [], most)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "hung"))
        hung.listen(2 * most)
        source = f"{'f' * 32}@{Address.parse(transport.address).host},unix:{tmp_path / 'hung'}"
        pulls = [
            transport.pull(source, [n], [n], 60.0, on_done=lambda _: None, on_released=lambda: None)
            for n in range(2 * most)
        ]
        for pull in pulls:
            pull.cancel()
        results = [pull.wait(30.0) for pull in pulls]
    transport.close()
    assert {result.reason for result in results if result is not None} == {"the pull was cancelled"}
