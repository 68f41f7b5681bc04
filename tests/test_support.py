"""What docs/use/support.md promises, and the tests that show it: each promise has one, and it exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "use" / "support.md"

Proofs = tuple[str, ...]
"""Each as `file.py::test`, files by their name alone."""

EQUALITY: Proofs = ("test_vllm_equality.py::test_moved_streams_say_what_undisturbed_ones_say",)
KILLED: Proofs = ("test_vllm_loss.py::test_every_kind_is_continued_or_says_why_not",)
RESENT: Proofs = ("test_front_end_machine.py::test_stream_that_said_nothing_can_always_start_again",)
CONTINUED: Proofs = ("test_session.py::test_stream_in_the_middle_is_continued_only_if_that_is_exact",)
PINNED: Proofs = ("test_movable.py::test_requests_that_cannot_move_say_why",)

REQUESTS: dict[str, tuple[Proofs, Proofs]] = {
    "greedy": (EQUALITY, ("test_vllm_loss.py::test_killed_instance_under_fifty_streams",)),
    "sampled, no seed": (("test_vllm_clients.py::test_sampled_answer_without_a_seed_moves",), CONTINUED),
    "sampled with a seed": (EQUALITY, KILLED),
    "penalties, `logit_bias`, `min_tokens`, stop strings": (EQUALITY, KILLED),
    "logprobs": (EQUALITY, KILLED),
    "prompt logprobs": (
        (*PINNED, "test_vllm_clients.py::test_logprobs_of_the_prompt_are_the_same_of_one_that_moves"),
        CONTINUED,
    ),
    "structured output (regex, JSON schema, grammar, choice)": (
        (*EQUALITY, "test_vllm_reasoning.py::test_moves_and_dies_after_its_reasoning_has_ended"),
        (*KILLED, "test_vllm_reasoning.py::test_moves_and_dies_after_its_reasoning_has_ended"),
    ),
    "`n > 1`, several prompts": (EQUALITY, KILLED),
    "LoRA": (
        (
            "test_vllm_lora.py::test_request_with_an_adapter_moves",
            "test_vllm_lora.py::test_adapter_loaded_while_serving_is_on_all_instances",
        ),
        (
            "test_streams_adapters.py::test_stream_whose_instance_is_lost_goes_to_one_that_has_it_or_ends_saying_why",
            "test_resume.py::test_one_whose_adapter_cannot_be_loaded_fails_and_never_meets_a_step",
        ),
    ),
    "queued or preempted": (
        (
            "test_vllm_queues.py::test_queued_request_moves_without_kv_and_runs_at_once",
            "test_vllm_queues.py::test_queued_and_preempted_requests_move_and_say_the_same",
        ),
        RESENT,
    ),
    "in the middle of its prefill": (EQUALITY, RESENT),
    "multi-modal input, prompt embeddings": (PINNED, (*RESENT, *CONTINUED)),
    "pooling, embeddings, classification": (PINNED, RESENT),
    "streaming input sessions": (PINNED, CONTINUED),
    "custom logits processors": (
        ("test_vllm_windows.py::test_logits_processor_sees_the_whole_output_of_one_that_moved",),
        ("test_vllm_windows.py::test_logits_processor_sees_the_whole_output_of_one_whose_instance_died",),
    ),
}

WAYS_PINNED: Proofs = ("test_movable.py::test_ways_to_run_that_are_not_safe_pin_their_engine",)
CACHES_PINNED: Proofs = ("test_movable.py::test_caches_that_cannot_be_copied_pin_their_engine",)

ENGINES: dict[str, Proofs] = {
    "full attention, sliding window, several KV groups of these kinds": (
        "test_vllm_windows.py::test_streams_move_that_have_left_their_window",
        "test_late_blocks.py::test_moved_stream_is_right",
        "test_late_machine.py::test_any_order",
        "test_movable.py::test_what_tokens_are_appended_to_moves",
    ),
    "tensor parallel (same size on both sides)": (
        "test_vllm_tensor_parallel.py::test_moved_streams_say_what_undisturbed_ones_say",
    ),
    "async scheduling, chunked prefill, prefix caching": (
        "test_vllm_async_scheduling.py::test_moved_streams_say_what_undisturbed_ones_say",
        *EQUALITY,
    ),
    "state that is overwritten in place (Mamba and other hybrids), encoder-decoder, M-RoPE": (
        *CACHES_PINNED,
        *WAYS_PINNED,
    ),
    "speculative decoding, pipeline parallel, context parallel, KV connectors, routed experts in the answers": (
        WAYS_PINNED
    ),
    "caches of several precisions, HiSparse, `--enable-sleep-mode`": (*CACHES_PINNED, *WAYS_PINNED),
    "no KV cache at all (encoders)": (
        *CACHES_PINNED,
        "test_movable.py::test_worker_without_a_cache_opens_no_transport",
        "test_vllm_encoder.py::test_both_instances_answer_and_alike",
    ),
}

ALL = sorted({proof for pair in REQUESTS.values() for proofs in pair for proof in proofs}.union(*ENGINES.values()))


def _rows(head: str) -> Iterator[str]:
    """What the first column of the table under this head names."""
    table = PAGE.read_text().partition(f"| {head} |")[2].partition("\n\n")[0]
    yield from (line.split("|")[1].strip() for line in table.splitlines()[2:])


def test_every_kind_of_request_in_the_table_has_its_proofs() -> None:
    assert list(_rows("request")) == list(REQUESTS)


def test_every_kind_of_engine_in_the_table_has_its_proofs() -> None:
    assert list(_rows("engine")) == list(ENGINES)


@pytest.mark.parametrize("proof", ALL)
def test_proof_exists(proof: str) -> None:
    name, _, test = proof.partition("::")
    (path,) = TESTS.rglob(name)
    assert re.search(rf"^(async )?def {test}\(", path.read_text(), re.MULTILINE)
