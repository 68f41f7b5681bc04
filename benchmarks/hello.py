"""Hello, cluster: serves a tiny model on two instances, sends it 2,000 requests, and prints how it went (`make hello`).

The requests are the paper's short-short mix at half its length (mean 64 tokens in and out, with a long tail), one in
ten of high priority. The engines have little memory, so that requests move between them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from frame.arguments import at_least_one, folder
from frame.server import llumnix_server

from llumnix.cli import main as llumnix

WORKLOAD = "S-S?requests=2000&rate=12&scale=0.5&cap=1024&high=0.1&seed=1"

SMALL_MEMORY = ["--kv-cache-memory-bytes", str(16 * 1024 * 1024), "--max-model-len", "2048"]
"""127 blocks: a few long requests fill an instance."""

THRESHOLDS = ["--migrate-out-freeness", "5", "--migrate-in-freeness", "10"]
"""The defaults are for instances with more memory; with this little, freeness is never high for long."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder, default=Path("out/hello"), help="folder of the records and pictures")
    parser.add_argument("--workload", default=WORKLOAD, help=f"workload of llumnix bench (default: {WORKLOAD})")
    parser.add_argument("--instances", type=at_least_one, default=2, help="engine instances (default: 2)")
    values = parser.parse_args()
    print(f"starting {values.instances} instances of the tiny model", flush=True)
    with llumnix_server([], *SMALL_MEMORY, *THRESHOLDS, instances=values.instances) as server:
        print(f"serving on {server.url}, ready after {server.ready_s:.0f} s", flush=True)
        return llumnix(["bench", "--url", server.url, "--workload", values.workload, "--out", str(values.out)])


if __name__ == "__main__":
    sys.exit(main())
