"""The contract with vLLM: what the adapter relies on is there, and what is not there is said."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

vllm = pytest.importorskip("vllm")

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue  # noqa: E402

from llumnix.cluster.devices import WORKERS_SHARE_BYTES  # noqa: E402
from llumnix.engine.vllm import hooks  # noqa: E402
from llumnix.engine.vllm.front_end.hooks import client_fields  # noqa: E402
from llumnix.engine.vllm.hook import OLDEST, Hook, release_of  # noqa: E402
from llumnix.engine.vllm.hooks import HOOKS, problems  # noqa: E402
from llumnix.vllm_words import SUPPORTED, installed_version, supports  # noqa: E402


def test_installed_vllm_fits() -> None:
    assert problems() == []


def test_queue_of_a_worker_needs_the_shared_memory_that_is_looked_for_before_anything_starts() -> None:
    queue = inspect.signature(MessageQueue).parameters
    assert queue["max_chunk_bytes"].default * queue["max_chunks"].default == WORKERS_SHARE_BYTES


def test_every_hook_says_what_it_is_for() -> None:
    assert [hook.where for hook in HOOKS if not hook.used_for] == []
    releases = [release_of(version) for version in SUPPORTED]
    for release in releases:
        concerned = [hook.where for hook in HOOKS if hook.concerns(release)]
        assert len(set(concerned)) == len(concerned), "two of one place for one version"
    assert [hook.where for hook in HOOKS if not any(map(hook.concerns, releases))] == []


def test_hook_concerns_the_versions_from_the_first_to_before_the_last() -> None:
    span = Hook("vllm:x", "", "", since=(0, 32), until=(0, 34))
    assert [release for release in [OLDEST, (0, 32), (0, 33), (0, 34), (1, 0)] if span.concerns(release)] == [
        (0, 32),
        (0, 33),
    ]


@pytest.fixture
def with_hook(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def replace(*wanted: Hook) -> None:
        monkeypatch.setattr(hooks, "HOOKS", wanted)

    return replace


@pytest.mark.parametrize("version", ["0.30.3", "0.34.0", "dev"])
def test_other_version_is_reported(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    assert problems() == [f"its version is {version}, and the adapter is for 0.31, 0.32 or 0.33"]


def test_what_only_another_version_has_is_not_missed(monkeypatch: pytest.MonkeyPatch, with_hook: Any) -> None:
    with_hook(Hook("vllm:vanished", "", "", until=(0, 31)), Hook("vllm:to_come", "", "", since=(0, 34)))
    assert problems() == []


def test_version_is_known_without_asking_vllm_or_how_it_was_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", nobody)
    assert installed_version() == vllm.__version__
    assert supports(vllm.__version__)


def test_missing_function_is_reported(with_hook: Any) -> None:
    with_hook(Hook("vllm.v1.engine.core:EngineCoreProc.vanished", "self", "living"))
    (problem,) = problems()
    assert problem.startswith("vllm.v1.engine.core:EngineCoreProc.vanished is missing")
    assert problem.endswith("needed for: living")


def test_missing_module_is_reported(with_hook: Any) -> None:
    with_hook(Hook("vllm.v1.vanished:Thing", "self", "living"))
    assert "vllm.v1.vanished:Thing is missing" in problems()[0]


class Changed:
    def renamed(self, request_type: int, message: int) -> None: ...
    def another_required(self, request_type: int, request: int, deadline: float) -> None: ...
    def another_with_default(self, request_type: int, request: int, deadline: float = 1.0, *more: int) -> None: ...
    def fewer(self, request_type: int) -> None: ...


@pytest.mark.parametrize(
    ("method", "takes"),
    [
        ("renamed", "self, request_type, message"),
        ("another_required", "self, request_type, request, deadline"),
        ("fewer", "self, request_type"),
    ],
)
def test_changed_signature_is_reported(
    monkeypatch: pytest.MonkeyPatch, with_hook: Any, method: str, takes: str
) -> None:
    from vllm.v1.engine.core import EngineCoreProc

    monkeypatch.setattr(EngineCoreProc, "_handle_client_request", getattr(Changed, method))
    where = "vllm.v1.engine.core:EngineCoreProc._handle_client_request"
    with_hook(*(hook for hook in HOOKS if hook.where == where))
    assert problems() == [
        f"{where} takes ({takes}), not (self, request_type, request); needed for: overridden: control messages"
    ]


def test_new_parameter_with_a_default_does_not_matter(monkeypatch: pytest.MonkeyPatch, with_hook: Any) -> None:
    from vllm.v1.engine.core import EngineCoreProc

    monkeypatch.setattr(EngineCoreProc, "_handle_client_request", Changed.another_with_default)
    with_hook(*(hook for hook in HOOKS if hook.where.endswith("_handle_client_request")))
    assert problems() == []


def test_new_field_of_the_client_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "client_fields", lambda release: client_fields(release) - {"encoder"} | {"lamp"})
    assert problems() == ["the fields of its engine client changed: new ['encoder'], gone ['lamp']"]
