"""Files that a child which was killed could not remove itself. All are in the private folder of the server."""

from __future__ import annotations

from pathlib import Path

from llumnix.cluster import run_dir
from llumnix.cluster.nursery_messages import is_front_end


def temporary_folder(private: str, child: str) -> Path:
    return Path(private) / f"{child}.tmp"


def remove_traces(private: str, child: str) -> None:
    """Front ends keep their names, and so their sockets."""
    run_dir.remove(temporary_folder(private, child))
    if not is_front_end(child):
        (Path(private) / child).unlink(missing_ok=True)


def remove_gauges(private: str, pid: int) -> None:
    """prometheus_client adds up those of living processes by their files."""
    for gauge in Path(private).glob(f"gauge_live*_{pid}.db"):
        gauge.unlink(missing_ok=True)
