"""The families: which checkpoint, what `llumnix serve` is told, what it is asked, and what vLLM's CPU build lacks."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from frame.lora import RANK

from families import asked
from families.checkpoints import RECIPES, ensure

_SMALL_BLOCKS = ("--block-size", "32")  # the smallest for most CPU kernels: streams of some hundred tokens have many
_NO_PREFIX_CACHE = ("--no-enable-prefix-caching",)
TORCHVISION = Path(__file__).parents[1] / "_torchvision"
_STAGES = Path(__file__).parents[1] / "_stages"


@dataclass(frozen=True, slots=True)
class Family:
    recipe: str
    """The name of its checkpoint's recipe."""
    like: str
    """What of it is published, and what is special about it here."""
    dtype: str = "float32"
    flags: tuple[str, ...] = _SMALL_BLOCKS
    """Beyond what all get."""
    drafts: Mapping[str, object] = field(default_factory=dict)
    """vLLM's speculative configuration; `model` is the name of a recipe."""
    kinds: tuple[str, ...] = asked.TEXT
    """Of `frame.kinds`: what it can be asked so that two runs must say the same."""
    alone: bool = False
    """Whether it says something else when it is computed together with others; then nothing else runs beside it."""
    gap: str = ""
    """What vLLM's CPU build cannot do with it, and why."""
    plugin: Path | None = None
    """A folder with a plugin of vLLM's that fills such a gap."""

    @property
    def asked(self) -> tuple[str, ...]:
        """Of its kinds, those that leave nothing to what happens to be computed beside them."""
        return tuple(kind for kind in self.kinds if not (self.alone and kind in asked.SEVERAL))

    @property
    def recipes(self) -> tuple[str, ...]:
        draft = self.drafts.get("model")
        return (self.recipe, draft) if isinstance(draft, str) else (self.recipe,)


_SCAN = (
    "with prefix caching vLLM's CPU engine ends in its first prefill: its scan returns one state for each sequence, "
    "where mamba_mixer2.py wants one for each chunk (IndexError)"
)
_MLA = ("--attention-backend", "CPU_MLA")  # the other one of CPUs, where there is AMX, takes bfloat16 alone
_MLA_BATCHES = "vLLM's CPU kernels of latent attention say something else of prompts that are computed in one batch"
_CONV_BATCHES = "vLLM's CPU kernel of short convolutions says something else in another batch"
_NO_BUFFERS = "without `_stages/`: vLLM's CPU runner makes no buffers for what a stage gives the next"
_BF16_GDN = (
    "only in bfloat16, where another batch or another cut of a prompt rounds otherwise: vLLM's CPU kernels of gated "
    "delta nets take nothing else"
)

_FEWER_DRAFTS = (
    "vLLM's CPU engine ends at a step with fewer tokens than were accepted before (RuntimeError, `_spec_forward` in "
    "gdn_attention.py), so where a grammar rejects drafts"
)

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "Llama 3, Qwen 2.5, Mistral: dense, full attention"),
    "sliding": Family("gemma3", "Gemma 3: three layers with a window for each one without"),
    "chunked": Family("llama4", "Llama 4: attention within chunks, experts in every second layer"),
    "gpt-oss": Family("gpt-oss", "gpt-oss: windows, sinks, experts", kinds=asked.COMPLETIONS),
    "experts": Family("qwen3-moe", "Qwen 3 MoE, Mixtral: experts in every layer"),
    "mla-v2": Family("deepseek-v2", "DeepSeek V2: latent attention", flags=_MLA, alone=True, gap=_MLA_BATCHES),
    "mla": Family(
        "deepseek-v3", "DeepSeek V3, Kimi K2: latent attention, experts", flags=_MLA, alone=True, gap=_MLA_BATCHES
    ),
    "qwen2-vl": Family("qwen2-vl", "Qwen 2 VL: images, videos, M-RoPE", kinds=asked.VIDEOS),
    "qwen3-vl": Family("qwen3-vl", "Qwen 3 VL: images into several layers, M-RoPE", kinds=asked.IMAGES),
    "llava": Family("llava", "LLaVA: images", kinds=asked.IMAGES),
    "gemma3-vision": Family("gemma3-vision", "Gemma 3: images, windows", kinds=asked.IMAGES),
    "qwen2-audio": Family("qwen2-audio", "Qwen 2 Audio: an encoder of sound", kinds=asked.AUDIO),
    "granite4": Family("granite4", "Granite 4: Mamba 2, attention, experts", flags=_NO_PREFIX_CACHE, gap=_SCAN),
    "falcon-h1": Family("falcon-h1", "Falcon H1: both in each layer", flags=_NO_PREFIX_CACHE, gap=_SCAN),
    "nemotron-h": Family("nemotron-h", "Nemotron H: Mamba 2, attention", flags=_NO_PREFIX_CACHE, gap=_SCAN),
    "lfm2": Family(
        "lfm2", "LFM 2: short convolutions, attention", flags=_NO_PREFIX_CACHE, alone=True, gap=_CONV_BATCHES
    ),
    "qwen3-next": Family(
        "qwen3-next",
        "Qwen 3 Next: gated delta nets, attention, experts",
        dtype="bfloat16",
        flags=_NO_PREFIX_CACHE,
        alone=True,
        gap=_BF16_GDN,
    ),
    "qwen3-next-cached": Family(
        "qwen3-next",
        "the same with prefix caching: states are kept at the ends of blocks",
        dtype="bfloat16",
        flags=(),
        alone=True,
        gap=_BF16_GDN,
    ),
    "adapters": Family(
        "llama-adapted",
        "LoRA adapters",
        flags=(*_SMALL_BLOCKS, "--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "2"),
        kinds=asked.WITH_ADAPTERS,
    ),
    "pipeline": Family(
        "llama",
        "two stages, each in a process of its own",
        flags=(*_SMALL_BLOCKS, "--pipeline-parallel-size", "2", "--distributed-executor-backend", "mp"),
        gap=_NO_BUFFERS,
        plugin=_STAGES,
    ),
    "ngram": Family(
        "llama",
        "drafts from what was said before",
        drafts={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4},
        kinds=asked.DRAFTED,
    ),
    "draft-model": Family(
        "llama",
        "drafts of a smaller model",
        drafts={"method": "draft_model", "model": "llama-draft", "num_speculative_tokens": 3},
        kinds=asked.DRAFTED,
    ),
    "eagle": Family(
        "llama-leaning",
        "drafts of a head, EAGLE",
        drafts={"method": "eagle", "model": "llama-eagle", "num_speculative_tokens": 3},
        kinds=asked.DRAFTED,
    ),
    "mtp-hybrid": Family(
        "qwen3-next-mtp",
        "Qwen 3 Next: drafts of a layer, on states that are overwritten",
        dtype="bfloat16",
        flags=_NO_PREFIX_CACHE,
        drafts={"method": "mtp", "num_speculative_tokens": 2},
        kinds=asked.DRAFTED_FREELY,
        alone=True,
        gap=f"{_BF16_GDN}; {_FEWER_DRAFTS}",
    ),
}

CANNOT_RUN = {
    "Jamba (Mamba 1)": "vLLM's CPU build lacks the kernel `_C.selective_scan_fwd`",
    "Kimi Linear (KDA)": "its kernels are Triton's, which the CPU build does not have",
    "gated delta nets with ngram drafts": f"{_FEWER_DRAFTS}, or none are found",
    "latent attention with drafts (DeepSeek V3's MTP)": (
        "vLLM's CPU backend computes a step's token and draft as if nothing stood before them: greedy streams of `vllm "
        "serve` itself are other ones with drafts than without, from their first to eighth token on"
    ),
    "suffix decoding": "needs the package arctic-inference",
    "experts spread over data parallel ranks": (
        "vLLM's communicator for CPUs lacks `all_gatherv` and `reduce_scatterv`, so the first step ends the engine"
    ),
}
"""What has no family here, and why: vLLM's CPU build does not run it, or not rightly."""


def engine_flags(name: str, cache: Path | None = None) -> list[str]:
    """Model and flags for `llumnix serve` and `vllm serve` alike, under the name `tiny`; what is missing is made."""
    family = FAMILIES[name]
    made = ensure(family.recipes, cache)
    flags = [
        str(made[family.recipe]),
        *("--served-model-name", "tiny", "--dtype", family.dtype, "--enforce-eager"),
        *("--max-model-len", "8192", "--kv-cache-memory-bytes", str(128 << 20), "--max-num-seqs", "16"),
        *family.flags,
    ]
    if adapters := RECIPES[family.recipe].adapters:
        flags += ["--lora-modules", *(f"{adapter}={made[family.recipe] / adapter}" for adapter in adapters)]
    if family.drafts:
        model = family.drafts.get("model")
        where = {"model": str(made[model])} if isinstance(model, str) else {}
        flags += ["--speculative-config", json.dumps({**family.drafts, **where})]
    return flags


def engine_environment(name: str) -> dict[str, str]:
    """What a server of this family has in its environment: where its plugin is found, and for models that look at
    images the stand-in for torchvision."""
    family = FAMILIES[name]
    folders = [family.plugin] if family.plugin else []
    if RECIPES[family.recipe].special and importlib.util.find_spec("torchvision") is None:
        folders.append(TORCHVISION)
    if not folders:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (*map(str, folders), os.environ.get("PYTHONPATH"))))}


@contextmanager
def family_engine_flags(name: str) -> Iterator[list[str]]:
    """As `engine_flags`; servers that are started meanwhile have what the family wants in its environment."""
    with mock.patch.dict(os.environ, engine_environment(name)):
        yield engine_flags(name)
