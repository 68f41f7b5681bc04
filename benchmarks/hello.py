"""Hello, cluster: serves a tiny model on two instances, sends it 2,000 requests, and prints how it went (`make hello`).

The requests are the paper's short-short mix at half its length (mean 64 tokens in and out, with a long tail), one in
ten of high priority. The engines have little memory, so that requests move between them.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
from pathlib import Path

WORKLOAD = "S-S?requests=2000&rate=12&scale=0.5&cap=1024&high=0.1&seed=1"

SMALL_MEMORY = ["--kv-cache-memory-bytes", str(16 * 1024 * 1024), "--max-model-len", "2048"]
"""127 blocks: a few long requests fill an instance."""

THRESHOLDS = ["--migrate-out-freeness", "5", "--migrate-in-freeness", "10"]
"""The defaults are for instances with more memory; with this little, freeness is never high for long."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/hello"), help="folder of the records and pictures")
    parser.add_argument("--workload", default=WORKLOAD, help=f"workload of llumnix bench (default: {WORKLOAD})")
    parser.add_argument("--instances", default="2", help="engine instances (default: 2)")
    values = parser.parse_args()
    llumnix = [sys.executable, "-m", "llumnix"]
    port = str(free_port())
    serve = [*llumnix, "serve", "--instances", values.instances, "--port", port]
    serve += [*SMALL_MEMORY, *THRESHOLDS]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            if not wait_until_serving(server):
                return server.wait()
            url = f"http://127.0.0.1:{port}"
            bench = ["bench", "--url", url, "--workload", values.workload, "--out", str(values.out)]
            return subprocess.run([*llumnix, *bench], check=False).returncode
        except KeyboardInterrupt:
            return 130
        finally:
            server.send_signal(signal.SIGTERM)


def wait_until_serving(server: subprocess.Popen[str]) -> bool:
    """Shows the server's lines until it serves; False if it ends before."""
    assert server.stdout is not None
    for line in server.stdout:
        print(line, end="", flush=True)
        if line.startswith("serving"):
            return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
