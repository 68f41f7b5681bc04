"""Times one checkout's simulator: `PYTHONPATH=CHECKOUT/src python _simulator_probe.py CHECKOUT`.

Each line on standard input, "POLICY INSTANCES REQUESTS", is answered with seconds of CPU. Workload and run are those of
the checkout's own `benchmarks/simulator.py`, whatever its modules are called there.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from pathlib import Path


def main() -> None:
    benchmarks = Path(sys.argv[1]) / "benchmarks"
    sys.path[0] = str(benchmarks)
    import simulator

    assert Path(simulator.__file__).parent == benchmarks
    for line in sys.stdin:
        policy, instances, requests = line.split()
        workload = simulator.azure(int(requests), 2.0 * int(instances))
        gc.collect()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            begin_s = time.process_time()
            simulator.timed(workload, int(instances), policy)
            cpu_s = time.process_time() - begin_s
        print(cpu_s, flush=True)


if __name__ == "__main__":
    main()
