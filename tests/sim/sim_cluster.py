"""What tests of whole simulated clusters share."""

from __future__ import annotations

from llumnix.sim.outcome import Outcome


def assert_all_served(outcome: Outcome) -> None:
    """Every request has every token, in order of time."""
    for request in outcome.requests:
        assert request.generated == request.output_tokens, request
        assert request.arrival_s < request.first_token_s <= request.last_token_s <= request.finish_s
