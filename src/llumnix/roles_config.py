"""The knobs of tokens that come in time (docs/understand/roles.md)."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.errors import UsageError
from llumnix.knob import check_knobs, knob


@dataclass(frozen=True, slots=True, kw_only=True)
class RolesConfig:
    """Tokens in time: a target, and which instances are preferred for prompts, or for tokens."""

    tpot_target_ms: float = knob(
        0.0,
        "Milliseconds between two tokens of a request: an instance where requests decode computes at most as many "
        "tokens of prompts per step as leave it in time (0: no target).",
        ">= 0",
    )
    ttft_target_ms: float = knob(0.0, "Milliseconds until a first token, for --roles adaptive or advise.", ">= 0")
    roles: str = knob(
        "static",
        "Who decides which instances are for prompts: static (the two flags below), adaptive (the scheduler, by what "
        "is asked and both targets) or advise (it only says what it would do, and why).",
        values=("static", "adaptive", "advise"),
    )
    prefill_instances: int = knob(
        0, "Instances that compute prompts; with their first token requests leave them for others (0: none)."
    )
    decode_instances: int = knob(
        0,
        "Instances that take requests with their first token, and prompts only as far as --tpot-target-ms leaves time "
        "for them; the rest does both (0: none).",
    )

    def __post_init__(self) -> None:
        check_knobs(self)
        if self.roles == "static" and self.ttft_target_ms:
            raise UsageError("--ttft-target-ms is for --roles adaptive or advise.")
        if self.roles != "static" and not (self.ttft_target_ms and self.tpot_target_ms):
            raise UsageError(f"--roles {self.roles} needs --ttft-target-ms and --tpot-target-ms.")
        if self.roles == "adaptive" and self.prefill_instances:
            raise UsageError(
                "--prefill-instances is for --roles static or advise: adaptive ones are the scheduler's to say."
            )
        if self.prefill_instances < 0 or self.decode_instances < 0:
            raise UsageError("--prefill-instances and --decode-instances must not be negative.")
        if self.decode_instances and not self.prefill_instances:
            raise UsageError("--decode-instances is for requests that leave --prefill-instances, and there are none.")

    def check(self, instances: int) -> None:
        """Raises UsageError unless somebody is left to make tokens."""
        for_prompts, for_tokens = self.prefill_instances, self.decode_instances
        if for_prompts >= instances or for_prompts + for_tokens > instances:
            given = f"--prefill-instances {for_prompts}" + (f" --decode-instances {for_tokens}" if for_tokens else "")
            raise UsageError(f"{given} is too many for --instances {instances}: others are to make tokens.")

    @property
    def tpot_target_s(self) -> float:
        """0: none."""
        return self.tpot_target_ms / 1e3
