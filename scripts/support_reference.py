"""Writes docs/use/support.md from the rows below: what moves, and the tests that show it. `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

TARGET = Path(__file__).parent.parent / "docs" / "use" / "support.md"

HEAD = """# What can move

Everything is served; this is about what can change its instance while it runs. `GET /llumnix/v1/requests` says
for each request whether it is `movable`, and if not, `why_pinned`. Made from the rows in
`scripts/support_reference.py`, each of which names the tests that show it; `benchmarks/equality.py --family NAME` shows
it of a tiny model of that kind, stream by stream.

"""

FOOT = """
On CPUs, vLLM 0.32 computes a request without an adapter, in one batch with a request that has one, with what was last
in the last of its `--max-loras` places, also after that adapter is gone; its output is that adapter's. Engines under
Llumnix do not: such requests say the same whatever is beside them. On GPUs, vLLM's kernels are right by themselves.

On CPUs, vLLM's kernels for latent attention, short convolutions and gated delta nets give a request other tokens when
others are computed in the same batch, whether anything moves or not. A move changes the batch; alone in it, moved
requests say the same. Latent attention with drafts (DeepSeek's MTP) is wrong in vLLM's CPU build itself: a step's token
and draft are computed there as if nothing stood before them, so what is said depends on which steps had a draft.

Platforms: Linux, Python 3.11 and later, vLLM 0.32, 0.31 ([in part](../change/another-vllm.md)) and 0.33 (never run).
The CPU build is what the tests run on, with its V1 model runner and with V2, the one of GPUs (in Triton's interpreter).
With V2, moves of states that follow drafts are shown on a simulated device alone: at a step with fewer tokens than were
accepted before, the CPU build's own kernel (`causal_conv1d_update_cpu`) ends the engine.
What has been run where: [GPUs](gpus.md#what-was-run-where).

## Which clients were tried

What they get is what a plain `vllm serve` of the same model gives them, but for what these pages say:

* openai 3.54, in the tests, too: chat, completions, responses and embeddings with all their parameters, and wrong ones;
  200 streams at once; clients that close, cancel or lose patience;
* anthropic 2.12, in the tests, too: messages whole and streamed, tools, counts of tokens;
* litellm 1.108, langchain-openai 1.7, instructor 1.17, llama-index (openai-like 0.8): chats, tools, structured outputs;
* bytes on a socket: HTTP/1.0, pipelining, chunks, `Expect`, headers that are too large, ends in the middle;
* nginx 1.22 in front, with its defaults and with connections that are kept.

Tried with ours alone: litellm's proxy, lm-eval 0.4.13 (`local-completions`), `vllm bench serve`, and HAProxy 2.6 in
front, with checks of `/health` and `/ping`. In all of this but the bytes, instances were
killed, and what ran for long enough moved.

nginx hands streams on in large pieces unless it is told `proxy_buffering off`. HAProxy does not always tell a server
that a client has left who waits for a whole answer: that is computed to its end, or until `timeout server`.
"""

Proofs = tuple[str, ...]
"""Tests, each as `file.py::test`, files by their name alone."""


class Asked(NamedTuple):
    """A kind of request."""

    what: str
    moves: str
    moved: Proofs
    continues: str
    """After its instance died."""
    continued: Proofs


class Run(NamedTuple):
    """A kind of engine."""

    what: str
    moves: str
    moved: Proofs


EQUAL: Proofs = ("test_vllm_equality.py::test_moved_streams_say_what_undisturbed_ones_say",)
FAMILY: Proofs = ("test_vllm_families.py::test_moved_streams_say_what_undisturbed_ones_say",)
"""Of a tiny model of that kind."""
KILLED: Proofs = ("test_vllm_loss.py::test_every_kind_goes_on_and_says_the_same",)
SEEDED_LOST: Proofs = ("test_vllm_loss.py::test_seeded_streams_that_moved_are_lost_twice_and_say_the_same",)
RESENT: Proofs = ("test_front_end_machine.py::test_stream_that_said_nothing_can_always_start_again",)
EXACT: Proofs = ("test_session.py::test_stream_in_the_middle_is_continued_only_if_that_is_exact",)
PINNED: Proofs = ("test_movable.py::test_requests_that_cannot_move_say_why",)
WAY_PINNED: Proofs = ("test_movable.py::test_ways_to_run_that_are_not_safe_pin_their_engine",)
CACHE_PINNED: Proofs = ("test_movable.py::test_caches_that_cannot_be_copied_pin_their_engine",)
FIFTY: Proofs = ("test_vllm_loss.py::test_killed_instance_under_fifty_streams",)
UNSEEDED: Proofs = ("test_vllm_clients.py::test_sampled_answer_without_a_seed_moves",)
PROMPT_LOGPROBS: Proofs = (
    "test_vllm_clients.py::test_logprobs_of_the_prompt_are_the_same_of_one_that_moves",
    "test_vllm_queues.py::test_queued_request_that_asks_about_its_prompt_moves_and_is_told_the_same",
)
REASONED: Proofs = ("test_vllm_reasoning.py::test_moves_and_dies_after_its_reasoning_has_ended",)
ADAPTED: Proofs = (
    "test_vllm_lora.py::test_request_with_an_adapter_moves",
    "test_vllm_lora.py::test_adapter_loaded_while_serving_is_on_all_instances",
    *FAMILY,
)
ADAPTED_AGAIN: Proofs = (
    "test_streams_adapters.py::test_stream_whose_instance_is_lost_goes_to_one_that_has_it_or_ends_saying_why",
    "test_resume.py::test_one_whose_adapter_cannot_be_loaded_fails_and_never_meets_a_step",
)
QUEUED: Proofs = (
    "test_vllm_queues.py::test_queued_request_moves_without_kv_and_runs_at_once",
    "test_vllm_queues.py::test_queued_and_preempted_requests_move_and_say_the_same",
)
THINKING: Proofs = (
    "test_thinking_budget.py::test_budget_is_kept_wherever_its_request_goes",
    "test_thinking_budget.py::test_end_of_several_tokens_is_begun_anew_on_cpus",
)
PROCESSOR: Proofs = ("test_vllm_windows.py::test_logits_processor_sees_the_whole_output_of_one_that_moved",)
PROCESSOR_AGAIN: Proofs = (
    "test_vllm_windows.py::test_logits_processor_sees_the_whole_output_of_one_whose_instance_died",
)
LOOKING: Proofs = (
    "test_vllm_images.py::test_streams_say_the_same_wherever_they_move",
    "test_vllm_images.py::test_queued_one_moves_without_kv_and_after_its_first_tokens_with_it",
    *FAMILY,
)
LISTENING: Proofs = ("test_vllm_audio.py::test_streams_say_the_same_wherever_they_move", *FAMILY)
LISTENING_AGAIN: Proofs = (
    "test_vllm_audio.py::test_queued_one_moves_without_kv_then_with_it_and_outlives_its_instance",
)
LOOKING_AGAIN: Proofs = (
    "test_vllm_images.py::test_streams_go_on_when_their_instance_dies",
    "test_media.py::test_stream_whose_images_are_not_kept_says_so_when_its_instance_dies",
)
APPENDED: Proofs = (
    "test_vllm_windows.py::test_streams_move_that_have_left_their_window",
    "test_late_blocks.py::test_moved_stream_is_right",
    "test_late_machine.py::test_any_order",
    "test_movable.py::test_what_tokens_are_appended_to_moves",
)
CHUNKS: Proofs = ("test_late_machine.py::test_any_order", "test_movable.py::test_what_tokens_are_appended_to_moves")
BY_ITS_KINDS: Proofs = ("test_movable.py::test_what_tokens_are_appended_to_moves",)
STATES: Proofs = (
    "test_vllm_hybrids.py::test_moved_streams_say_what_undisturbed_ones_say",
    *FAMILY,
    "test_late_states.py::test_what_is_copied_while_a_stream_stands_still_does_not_grow_with_its_length",
    "test_late_machine.py::test_any_order",
    "test_movable.py::test_state_that_is_overwritten_moves",
)
PRECISIONS: Proofs = (*CHUNKS, "test_late_states.py::test_steps_here_do_not_zero_what_is_being_copied")
RANK_TO_RANK: Proofs = ("test_vllm_tensor_parallel.py::test_moved_streams_say_what_undisturbed_ones_say",)
STAGE_TO_STAGE: Proofs = (
    "test_vllm_pipeline_parallel.py::test_moved_streams_say_what_undisturbed_ones_say",
    "test_letters.py::test_random_generator_is_that_of_the_last_worker",
)
DRAFTED: Proofs = (
    "test_vllm_ngram_drafts.py::test_moved_streams_say_what_undisturbed_ones_say",
    "test_vllm_draft_model.py::test_moved_streams_say_what_undisturbed_ones_say",
    "test_vllm_draft_model.py::test_drafts_are_as_good_after_a_move",
    *FAMILY,
    "test_late_drafts.py::test_moved_stream_is_right_and_is_drafted_for_at_its_new_place",
    "test_movable.py::test_engines_with_drafts_that_can_be_dropped_move",
)
DRAFTED_STATES: Proofs = (
    "test_late_last_steps.py::test_moved_stream_is_right_and_is_drafted_for_at_its_new_place",
    "test_late_machine.py::test_any_order_of_requests_with_drafts",
    "test_vllm_families.py::test_moved_streams_say_what_undisturbed_ones_say",
)
DRAFTED_STATES_STAY: Proofs = (
    *CACHE_PINNED,
    "test_movable.py::test_state_after_drafts_stays_where_no_step_can_be_had_without_them",
)
SEEDED_DRAFTS: Proofs = ("test_movable.py::test_requests_whose_seed_draws_by_their_drafts_stay",)
DP_REFUSED: Proofs = (*WAY_PINNED, "test_flags.py::test_what_is_wrong_with_a_flag_of_vllm_is_told_at_once")
ASYNC: Proofs = ("test_vllm_async_scheduling.py::test_moved_streams_say_what_undisturbed_ones_say", *EQUAL)
NO_CACHE: Proofs = (
    *CACHE_PINNED,
    "test_movable.py::test_worker_without_a_cache_opens_no_transport",
    "test_vllm_encoder.py::test_both_instances_answer_and_alike",
)

_SEEDED = "yes, same tokens ([but for these](failures.md#streams-that-cannot-go-on-exactly))"
_ADAPTERS = (
    "if the target has the adapter ([adapters are loaded on all instances](serving.md#lora-adapters)), and one of its"
    " `--max-loras` places for it"
)
_PREFILL = "its blocks are copied meanwhile, it moves when the first token is out"
_CUSTOM = "yes; one that keeps more than it can tell from the tokens begins anew"
_BUDGET = "yes; on CPUs, one that moves within an end of several tokens begins it anew, as one that vLLM preempts there"
_QUEUED_TOO = "yes, queued and running"
_KEPT = "yes, up to [`--kept-media-mb`](failures.md#streams-that-cannot-go-on-exactly)"
_STRUCTURED = "structured output (regex, JSON schema, grammar, choice)"

REQUESTS = (
    Asked("greedy", "yes, same tokens", EQUAL, "yes, same tokens", FIFTY),
    Asked("sampled, no seed", "yes", UNSEEDED, "yes (another draw from the same distribution)", EXACT),
    Asked("sampled with a seed", "yes, same tokens", EQUAL, _SEEDED, (*KILLED, *SEEDED_LOST)),
    Asked("penalties, `logit_bias`, `min_tokens`, stop strings", "yes", EQUAL, "yes", KILLED),
    Asked("logprobs", "yes", EQUAL, "yes", KILLED),
    Asked("prompt logprobs", "yes", PROMPT_LOGPROBS, "yes", EXACT),
    Asked("a thinking budget (`thinking_token_budget`)", _BUDGET, THINKING, "the same", THINKING),
    Asked(_STRUCTURED, "yes", (*EQUAL, *REASONED), "yes", (*KILLED, *REASONED)),
    Asked("`n > 1`, several prompts", "yes, each sequence by itself", EQUAL, "yes", KILLED),
    Asked("LoRA", _ADAPTERS, ADAPTED, "yes, on an instance that has it", ADAPTED_AGAIN),
    Asked("queued or preempted", "yes, without KV", QUEUED, "yes", RESENT),
    Asked("in the middle of its prefill", _PREFILL, EQUAL, "yes", RESENT),
    Asked("images, videos", _QUEUED_TOO, LOOKING, _KEPT, LOOKING_AGAIN),
    Asked("audio", _QUEUED_TOO, (*LISTENING, *LISTENING_AGAIN), _KEPT, LISTENING_AGAIN),
    Asked("prompt embeddings", _QUEUED_TOO, LOOKING, _KEPT, LOOKING_AGAIN),
    Asked("pooling, embeddings, classification", "no (one step)", PINNED, "yes", RESENT),
    Asked("streaming input sessions", "no", PINNED, "no", EXACT),
    Asked("custom logits processors", _CUSTOM, PROCESSOR, "the same", PROCESSOR_AGAIN),
)

_ENCODER = "pinned: positions, or what the encoder made, are with the worker or the connector alone"
_INCOMPLETE = "pinned: what arrives would be incomplete or gone"
_HYBRIDS = "states that are overwritten in place (Mamba, gated delta nets, short convolutions; hybrids)"
_STANDS_STILL = "yes; the state follows while the request stands still, in a time that its length does not change"
_DRAFTS = "speculative decoding: ngram, suffix, Medusa, draft model, EAGLE, MTP (the same on both sides)"
_DROPPED = "yes, without the pending drafts; the drafter's KV goes along"
_LAST_STEP = "yes, after a step in which no draft is accepted"
_NO_LAST_STEP = "pinned: such a step cannot be had, or the states are moved about between steps"
_SEED_STAYS = "pinned: what a seed draws depends on the drafts, which stay behind"

_BY_ITS_KINDS = "yes, as windows and latent attention do; that model has never been tried"
_DP_REFUSED = "refused at the start; [what it would take](../change/data-parallel.md)"

ENGINES = (
    Run("full attention, sliding window, several KV groups of these kinds", "yes", APPENDED),
    Run("tensor parallel (same size on both sides)", "yes, rank to rank", RANK_TO_RANK),
    Run("async scheduling, chunked prefill, prefix caching", "yes", ASYNC),
    Run("attention within chunks (Llama 4)", "yes", (*CHUNKS, *FAMILY)),
    Run("latent attention (DeepSeek, Kimi K2), mixtures of experts", "yes", FAMILY),
    Run(_HYBRIDS, _STANDS_STILL, STATES),
    Run("rings that are overwritten in place (DeepSeek V4.1)", "not yet: pinned", CACHE_PINNED),
    Run("compressed latent attention, its compressor's state in a window (DeepSeek V4)", _BY_ITS_KINDS, BY_ITS_KINDS),
    Run("M-RoPE", "yes", LOOKING),
    Run(_DRAFTS, _DROPPED, DRAFTED),
    Run("speculative decoding on states that are overwritten in place", _LAST_STEP, DRAFTED_STATES),
    Run("... with prefix caching, or with async scheduling on the V1 runner", _NO_LAST_STEP, DRAFTED_STATES_STAY),
    Run("speculative decoding, and a request is sampled with a seed", _SEED_STAYS, SEEDED_DRAFTS),
    Run("speculative decoding with a drafter class of one's own", "pinned: it may keep a state", WAY_PINNED),
    Run("pipeline parallel (same size on both sides)", "yes, rank to rank", STAGE_TO_STAGE),
    Run("data parallel with experts spread over the ranks", _DP_REFUSED, DP_REFUSED),
    Run("context parallel", "not yet: pinned", WAY_PINNED),
    Run("encoder-decoder, KV connectors, routed experts in the answers", "not yet: pinned", WAY_PINNED),
    Run("caches of several precisions", "yes", PRECISIONS),
    Run("HiSparse, `--enable-sleep-mode`, `--use-replayssm`", _INCOMPLETE, WAY_PINNED),
    Run("video pruning (`--video-pruning-rate`), connectors of encoders", _ENCODER, WAY_PINNED),
    Run("no KV cache at all (encoders)", "nothing to move", NO_CACHE),
)


def reference() -> str:
    requests = [f"| {row.what} | {row.moves} | {row.continues} |" for row in REQUESTS]
    engines = [f"| {row.what} | {row.moves} |" for row in ENGINES]
    tables = (
        ["| request | moves live | goes on after its instance died |", "|---|---|---|", *requests],
        ["| engine | moves |", "|---|---|", *engines],
    )
    return HEAD + "\n\n".join("\n".join(lines) for lines in tables) + "\n" + FOOT


def main() -> int:
    text = reference()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() == text:
            return 0
        print("docs/use/support.md is not what the rows say: run scripts/support_reference.py")
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
