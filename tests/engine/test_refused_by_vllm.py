"""What vLLM objects to is told in a sentence, with the name of what it objects to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("vllm")

from vllm.config import CacheConfig, ModelConfig
from vllm.config.lora import LoRAConfig
from vllm.platforms.interface import UnspecifiedPlatform

from llumnix import tiny_model
from llumnix.engine.vllm.boot import _first_sentence, prepare
from llumnix.errors import UsageError


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        (lambda: LoRAConfig(max_loras=0), "max_loras: input should be greater than or equal to 1."),
        (
            lambda: CacheConfig(gpu_memory_utilization=7),
            "gpu_memory_utilization: input should be less than or equal to 1.",
        ),
        (lambda: LoRAConfig(max_loras=4, max_cpu_loras=2), "max_cpu_loras (2) must be >= max_loras (4)."),
        (lambda: ModelConfig(str(tiny_model.ensure()), hf_overrides="{"), "hf_overrides: input should be a"),  # type: ignore[arg-type]
    ],
)
def test_names_what_is_wrong(objects: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        objects()
    said = _first_sentence(caught.value)
    assert said.startswith(words)
    assert said.endswith(".")


def test_chat_template_that_nobody_has_is_told() -> None:
    with pytest.raises(UsageError, match=r"^The supplied chat template string \(none\.jinja\) .* Tried: [^(]*\.$"):
        prepare(["--chat-template", "none.jinja"], str(tiny_model.ensure()))


def test_build_for_gpus_where_there_is_none_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the machine of front ends whose instances are elsewhere, too."""
    monkeypatch.setattr("vllm.platforms._current_platform", UnspecifiedPlatform())
    with pytest.raises(UsageError, match="finds none on this machine"):
        prepare([], str(tiny_model.ensure()))
