"""Brings a request, its grammar included, to where its output stands that another instance made."""

from __future__ import annotations

from typing import Any

from vllm.v1.request import Request


def follow(request: Request, structured_output: Any, token_ids: list[int]) -> bool:
    """Appends the tokens and walks the grammar over them; False if it does not accept them.

    Token by token until the reasoning has ended, as the scheduler that made them did: a reasoning parser then finds the
    end where it was, and the grammar begins behind it. Takes some microseconds a token: to be called on a thread that
    no batch waits for, once the grammar is compiled, and for the last few only on the engine's own.
    """
    structured = request.structured_output_request
    if structured is None:
        request.append_output_token_ids(token_ids)
        return True
    for place, token in enumerate(token_ids):
        if structured.reasoning_ended:
            rest = token_ids[place:]
            request.append_output_token_ids(rest)
            accepted: bool = structured_output.accept_tokens(request, rest)
            return accepted
        request.append_output_token_ids([token])
        if not structured_output.accept_tokens(request, [token]):
            return False
    return True


def why_not_compiled(request: Request) -> str:
    """What its grammar failed with, or an empty string."""
    structured = request.structured_output_request
    grammar = None if structured is None else structured.grammar
    return str(grammar) if isinstance(grammar, Exception) else ""
