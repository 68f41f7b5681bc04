"""How a server is started whose engines have the V2 model runner (interpreted_engine.py), with async scheduling as
GPUs have it."""

from __future__ import annotations

import os
from pathlib import Path

_HERE = Path(__file__).parent
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(
        [str(_HERE), str(_HERE.parent), str(_HERE / "spawned"), os.environ.get("PYTHONPATH", "")]
    ),
    "VLLM_LOGGING_LEVEL": "INFO",  # its log says which runner it is
}
ENGINE = ("--engine-module", "interpreted_engine", "--scheduling-policy", "priority")
SYNCHRONOUS = (*ENGINE, "--no-migration", "--max-num-batched-tokens", "512", "--max-num-seqs", "32")
FLAGS = (*SYNCHRONOUS, "--async-scheduling")
