"""Flags of `vllm serve`, model first, for both servers alike: the tiny model, as it is or paced."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from frame.arguments import at_least_one, not_negative, whole
from llumnix import tiny_model

_BENCHMARKS = Path(__file__).parents[1]


def tiny_engine_flags(max_model_len: int = 8192, kv_mib: int = 64, *, compiled: bool = False) -> list[str]:
    """What suits the tiny model on a CPU."""
    return [
        str(tiny_model.ensure()),
        *("--served-model-name", "tiny", "--dtype", "float32", "--block-size", "32"),
        *("--max-model-len", str(max_model_len), "--kv-cache-memory-bytes", str(kv_mib << 20)),
        *([] if compiled else ["--enforce-eager"]),
    ]


def add_compile_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compile", action="store_true", help="With vLLM's compilation, as real models have it.")


@contextmanager
def empty_compile_cache() -> Iterator[None]:
    """Servers that are started meanwhile find nothing compiled from earlier."""
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder, mock.patch.dict(os.environ, VLLM_CACHE_ROOT=folder):
        yield


def add_pace_flags(parser: argparse.ArgumentParser) -> None:
    """For what `paced_engine_flags` is to be told."""
    parser.add_argument("--step-ms", type=not_negative, default=20.0, help="Of a step without tokens. Default: 20.")
    parser.add_argument("--token-ms", type=not_negative, default=0.2, help="More for each token. Default: 0.2.")


def rounds_of_paced_load(doc: str, workload: str) -> argparse.Namespace:
    """What a script was told that runs a workload against paced servers, round after round."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--rounds", type=at_least_one, default=2, help="Each with a seed of its own. Default: 2.")
    parser.add_argument("--workload", default=workload, help=f"Default: {workload}")
    parser.add_argument("--seed", type=whole, default=1)
    add_pace_flags(parser)
    return parser.parse_args()


@contextmanager
def vllm_plugin(folder: str) -> Iterator[None]:
    """Servers that are started meanwhile know what is in that folder: vLLM finds it through PYTHONPATH."""
    path = os.pathsep.join(filter(None, (str(_BENCHMARKS / folder), os.environ.get("PYTHONPATH"))))
    with mock.patch.dict(os.environ, PYTHONPATH=path):
        yield


@contextmanager
def paced_engine_flags(step_ms: float, token_ms: float, max_model_len: int, kv_mib: int) -> Iterator[list[str]]:
    """As `tiny_engine_flags`, of a model that takes its time as if every instance had a device."""
    with paced(tiny_engine_flags(max_model_len, kv_mib), step_ms, token_ms) as engine_flags:
        yield engine_flags


@contextmanager
def paced(engine_flags: list[str], step_ms: float, token_ms: float) -> Iterator[list[str]]:
    """The same of a copy of the model, model first, whose steps last so long (_paced/): servers that are started
    meanwhile pace it."""
    model, *flags = engine_flags
    with tempfile.TemporaryDirectory(prefix="paced-") as folder, vllm_plugin("_paced"):
        shutil.copytree(model, folder, dirs_exist_ok=True)
        config_json = Path(folder) / "config.json"
        config = json.loads(config_json.read_text())
        config |= {"paced_step_ms": step_ms, "paced_token_ms": token_ms}
        config_json.write_text(json.dumps(config))
        yield [folder, *flags]
