"""The contract with vLLM: what the adapter relies on is there, and what is not there is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

vllm = pytest.importorskip("vllm")

from llumnix.engine.vllm import hooks  # noqa: E402
from llumnix.engine.vllm.front_end.hooks import CLIENT_FIELDS  # noqa: E402
from llumnix.engine.vllm.hook import Hook  # noqa: E402
from llumnix.engine.vllm.hooks import HOOKS, problems  # noqa: E402


def test_installed_vllm_fits() -> None:
    assert problems() == []


def test_every_hook_says_what_it_is_for() -> None:
    assert [hook.where for hook in HOOKS if not hook.used_for] == []
    assert len({hook.where for hook in HOOKS}) == len(HOOKS)


@pytest.fixture
def with_hook(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def replace(*wanted: Hook) -> None:
        monkeypatch.setattr(hooks, "HOOKS", wanted)

    return replace


def test_other_version_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "__version__", "0.33.1")
    assert problems() == ["its version is 0.33.1, and the adapter is for 0.32"]


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
    monkeypatch.setattr(hooks, "CLIENT_FIELDS", CLIENT_FIELDS - {"encoder"} | {"lamp"})
    assert problems() == ["the fields of its engine client changed: new ['encoder'], gone ['lamp']"]
