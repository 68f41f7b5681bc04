"""Writes docs/change/vllm-hooks.md from `llumnix.engine.vllm.hooks`. `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from llumnix.engine.vllm.hook import OLDEST, Hook
from llumnix.engine.vllm.hooks import HOOKS
from llumnix.vllm_words import SUPPORTED_WORDS

TARGET = Path(__file__).parent.parent / "docs" / "change" / "vllm-hooks.md"

HEAD = f"""# vLLM hooks

Llumnix runs on unmodified vLLM {SUPPORTED_WORDS}: no fork, no patch. This is every place that it relies on, made from
`hooks.py` of `src/llumnix/engine/vllm/instance/` and of `front_end/` beside it by `scripts/vllm_hooks.py`. The list is
compared with the vLLM that is installed at every start; another version fails with the lines that do not fit.

## What is replaced, and why

| what | when | why |
|---|---|---|
| `EngineCoreClient.make_async_mp_client` | while `AsyncLLM.__init__` runs | `AsyncLLM` calls this static factory itself and cannot be given a client |
| `processor_cache_from_config` of `vllm.renderers.base` | while `AsyncLLM.__init__` runs | vLLM's choice counts on one engine having the processed images that the front end has; ours are many (`processor_only_cache_from_config` is for that) |
| `StatLoggerManager` of `vllm.v1.engine.async_llm` | while `AsyncLLM.__init__` runs | vLLM's metrics have a series for each engine that is there at the start; here instances are known late, and become more (`slot_metrics.py`) |
| `_get_priority` of the serving objects | on the objects of our app, not on the class | `service_tier` of a request becomes its priority; there is no hook for it |
| `message_stream_converter` of `AnthropicServingMessages`, `responses_stream_generator`, `responses_background_stream_generator`, `_run_background_request` and `_convert_generation_error_to_streaming_response` of `OpenAIServingResponses` | on the objects of our app, not on the classes | errors of generations end these streams with what vLLM says of an unreadable event, or with nothing, and a response in the background never (`stream_errors.py`) |
| `load_lora_adapter`, `unload_lora_adapter`, `resolve_lora` of `OpenAIServingModels` | on the object of our app, not on the class | adapters are those of the whole server (`engine/vllm/front_end/adapters.py`) |
| the routes `/load`, `/metrics`, and `/abort_requests` in development mode | ours come before them in the app | they tell of, or act on, one server process ([routes](../use/routes.md)) |
| `InputProcessor.vllm_config` | a copy whose `data_parallel_size` is the number of places | `X-data-parallel-rank` names a place among instances that come and go |
| the class of `CPUModelRunner` objects | a subclass without state, on CPUs only | seeded requests in chunks end vLLM's engine there (`seeded_prefill.py`); a worker cannot be given a runner |
| the class of `PunicaWrapperCPU` objects | a subclass without state, on CPUs only | vLLM's CPU kernels compute requests without an adapter with one (`without_adapter.py`); its platform names the class |
| `batched_count_greater_than` of `vllm.v1.sample.sampler` | in workers, on CPUs only | PyTorch would compile it when the first request asks for log probabilities, while the engine stands still (`plain_sampling.py`) |
| `compiled_random_sample` of `vllm.v1.sample.ops.topk_topp_sampler` | the same | the same, with the first token that is drawn without a seed, in 0.31 |
| `cache_blocks` of the scheduler's `KVCacheCoordinator` | on the object, not on the class | a request that arrived may be another's after all: its blocks enter the prefix cache when it is confirmed (`unconfirmed.py`) |
| fields of `MPClient` | set by `client_setup.py` instead of `MPClient.__init__` | that constructor starts engines itself, or waits for a fixed set of them |

Everything else is subclassing, and flags that exist for it (`scheduler_cls`, `worker_extension_cls`, `--middleware`).

## The two model runners

GPUs get vLLM's V2 model runner (`vllm/v1/worker/gpu/`), with practically all models; its CPU build, which has no Triton, takes
V1. Both run in the tests, V2 with its kernels in Triton's interpreter. Of an instance only its worker (`worker.py`) knows
which one it has:

| | V1 | V2 |
|---|---|---|
| a request that comes | is looked up in `model_runner.requests`, where `llumnix_install` puts it | comes whole with the step that takes it up (`NewRequestData.prefill_token_ids`): `add_requests` makes its slot, block table, counts of penalties, adapter and last token from that, so nothing is installed |
| what it draws with | its random generator, which moves with it | noise made of seed, position and token: nothing moves; a request without a seed gets another one |
| a request that leaves | `finished_req_ids` of the next step | the same, and its slot is free before that step's arrivals get theirs; ids that the runner does not know are passed over |
| one that is lent and comes back | sat out some steps: its row is made again from `requests` | sat out some steps: its slot was kept, and its place in the batch with it (`kept_places.py`) |

In the interpreter a step is over when it returns. On a GPU it is not, and what the adapter takes for granted there is, as read
in vLLM 0.32:

* The sampled tokens are copied on a stream of their own, which waits for the forward (`AsyncOutput`). So when the scheduler
  hears of a step, that step's KV is written. A drafter runs behind that event: what it writes for the last tokens may come
  later. Drafts that are made of a block copied too early are rejected; no token is wrong.
* A step reads the block table that it was launched with. What it may still write to is not pulled into before the scheduler
  has heard of it (`StepsInFlight`). Zeroing and copies of shared blocks run at the start of a step, in the order of its stream.
* Token ids, lengths, seeds and penalties are in host memory that the device reads (`UvaBackedTensor`), in as many copies as
  there are steps in flight. vLLM alone writes there, at the start of a step; nothing of ours does.
* Blocks that arrive are copied by a stream of the transport, and a request is taken up after its last event: the step that
  reads them is launched later.

## What is relied on

| hook | used for |
|---|---|
"""  # noqa: E501 a row of a table is one line


def reference() -> str:
    return HEAD + "".join(f"| `{hook.where}` | {hook.used_for}{_span(hook)} |\n" for hook in HOOKS)


def _span(hook: Hook) -> str:
    """In which versions, if not in all."""
    since = f" (since {'.'.join(map(str, hook.since))})" if hook.since > OLDEST else ""
    return since if hook.until is None else f"{since} (before {'.'.join(map(str, hook.until))})"


def main() -> int:
    text = reference()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() == text:
            return 0
        print("docs/change/vllm-hooks.md is not what hooks.py says: run scripts/vllm_hooks.py")
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
