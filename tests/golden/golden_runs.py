"""The runs whose results are pinned. `python tests/golden/golden_runs.py` writes `digests.json` anew."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from llumnix.config import PolicyConfig
from llumnix.policy.catalogue import POLICIES
from llumnix.report.records import MIGRATIONS_CSV, write_records
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.faults import parse_fault
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import load_workload

DIGESTS = Path(__file__).with_name("digests.json")
WORKLOAD = "S-S?rate=9&cv=3&high=0.1&requests=1200&seed=4"

RUNS: dict[str, RunSetup] = {
    policy: RunSetup(instances=4, profile=load_profile("a10-llama-7b"), policy=PolicyConfig(policy=policy))
    for policy in POLICIES
}
RUNS["vllm-1"] = RunSetup(instances=4, profile=load_profile("a10-llama-7b").with_scheduler(kind="vllm-1"))
RUNS["faults"] = RunSetup(
    instances=4,
    profile=load_profile("a10-llama-7b"),
    faults=tuple(map(parse_fault, ("crash@30", "stall@50+4", "slow-link@70+20:8"))),
    seed=4,
    sample_interval_s=5.0,
)
RUNS["the paper's reports"] = RunSetup(
    instances=4,
    profile=load_profile("a10-llama-7b"),
    policy=PolicyConfig(policy="llumnix-paper", pairing_interval_s=0.2),
    paper_body=True,
)


def digest(setup: RunSetup) -> str:
    """Of the files that the run writes, byte for byte; but for the last column of the migrations, the names of orders,
    which are no result."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_records(directory, simulate(sim_requests(load_workload(WORKLOAD)), setup).records())
        migrations = directory / MIGRATIONS_CSV
        lines = migrations.read_text(encoding="utf-8").splitlines()
        migrations.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in lines), encoding="utf-8", newline="\n")
        content = b"".join(path.read_bytes() for path in sorted(directory.iterdir()))
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps({name: digest(setup) for name, setup in RUNS.items()}, indent=2) + "\n")
