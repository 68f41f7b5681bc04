"""A reasoning parser for the tiny model, which speaks in bytes: it reasons up to the first `~`."""

from __future__ import annotations

from vllm.reasoning import ReasoningParserManager
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser


@ReasoningParserManager.register_module("tilde")  # type: ignore[arg-type]
class TildeReasoningParser(BaseThinkingReasoningParser):
    @property
    def start_token(self) -> str:
        return "<s>"

    @property
    def end_token(self) -> str:
        return "~"
