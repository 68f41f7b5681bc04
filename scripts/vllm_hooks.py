"""Writes docs/change/vllm-hooks.md from `llumnix.engine.vllm.hooks`. `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from llumnix.engine.vllm.hook import SUPPORTED
from llumnix.engine.vllm.hooks import HOOKS

TARGET = Path(__file__).parent.parent / "docs" / "change" / "vllm-hooks.md"

HEAD = f"""# vLLM hooks

Llumnix runs on unmodified vLLM {SUPPORTED}: no fork, no patch. This is every place that it relies on, made from
`hooks.py` of `src/llumnix/engine/vllm/instance/` and of `front_end/` beside it by `scripts/vllm_hooks.py`. The list is
compared with the vLLM that is installed at every start; another version fails with the lines that do not fit.

## What is replaced, and why

| what | when | why |
|---|---|---|
| `EngineCoreClient.make_async_mp_client` | while `AsyncLLM.__init__` runs | `AsyncLLM` calls this static factory itself and cannot be given a client |
| `_get_priority` of the serving objects | on the objects of our app, not on the class | `service_tier` of a request becomes its priority; there is no hook for it |
| `_raise_if_error` of the serving objects | on the objects of our app, not on the class | the error of a request that had to be given up says why, where vLLM knows only that |
| `load_lora_adapter`, `unload_lora_adapter`, `resolve_lora` of `OpenAIServingModels` | on the object of our app, not on the class | adapters are those of the whole server (`engine/vllm/front_end/adapters.py`) |
| the routes `/load`, `/metrics`, and `/abort_requests` in development mode | ours come before them in the app | they tell of, or act on, one server process ([routes](../use/routes.md)) |
| `InputProcessor.vllm_config` | a copy whose `data_parallel_size` is the number of places | `X-data-parallel-rank` names a place among instances that come and go |
| the class of `CPUModelRunner` objects | a subclass without state, on CPUs only | seeded requests in chunks end vLLM's engine there (`seeded_prefill.py`); a worker cannot be given a runner |
| the class of `PunicaWrapperCPU` objects | a subclass without state, on CPUs only | vLLM's CPU kernels compute requests without an adapter with one (`without_adapter.py`); its platform names the class |
| fields of `MPClient` | set by `client_setup.py` instead of `MPClient.__init__` | that constructor starts engines itself, or waits for a fixed set of them |

Everything else is subclassing, and flags that exist for it (`scheduler_cls`, `worker_extension_cls`, `--middleware`).

## What is relied on

| hook | used for |
|---|---|
"""  # noqa: E501 a row of a table is one line


def reference() -> str:
    return HEAD + "".join(f"| `{hook.where}` | {hook.used_for} |\n" for hook in HOOKS)


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
