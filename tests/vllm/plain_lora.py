"""Plain vLLM, no Llumnix: what a request without an adapter says alone, and beside one that has one.

    PYTHONPATH=benchmarks python tests/vllm/plain_lora.py FOLDER

Prints JSON: how many of the tokens differ from what it says alone, by the situation.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from frame.lora import RANK, make_adapter

from llumnix import tiny_model

TOKENS = 12


def main(folder: Path) -> None:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        str(tiny_model.ensure()),
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        enable_lora=True,
        max_loras=2,
        max_lora_rank=RANK,
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=256,
        kv_cache_memory_bytes=1 << 25,
    )
    first, last = (LoRARequest(f"a{n}", n, str(make_adapter(folder / f"a{n}", seed=n))) for n in (1, 2))
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)

    def says(*adapters: LoRARequest | None) -> list[int]:
        """The first of these requests, all in one batch."""
        prompts = [f"{n} amber basin cedar" for n in range(len(adapters))]
        outputs = llm.generate(prompts, greedy, lora_request=list(adapters), use_tqdm=False)  # type: ignore[arg-type]
        return list(outputs[0].outputs[0].token_ids)

    def differ(one: list[int], other: list[int]) -> int:
        return sum(a != b for a, b in zip(one, other, strict=True))

    alone = says(None)
    found = {"last place empty": differ(says(None, first), alone)}
    with_last = says(last)  # now it lies in the last place
    found["alone, last place filled"] = differ(says(None), alone)
    beside = says(None, first)
    found["last place filled"] = differ(beside, alone)
    found["from what the last adapter says"] = differ(beside, with_last)
    assert llm.llm_engine.remove_lora(last.lora_int_id)
    found["last adapter removed"] = differ(says(None, first), alone)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
