"""Makes `.venv/nixl` from nixl.lock: the library of `--transports nixl`, which reads host memory in tests."""

from __future__ import annotations

from make_aside import make_aside

if __name__ == "__main__":
    make_aside("nixl", needless=("nixl_ep_cu13",))
