"""Auto-scaling, drains and SIGTERM with real processes and an engine that is none (fake_boot.py)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from frame.server import wait_for
from served import Serve

pytestmark = pytest.mark.live

SCALING = ("--scaling", "on", "--min-instances", "1", "--max-instances", "3", "--scale-window-s", "0.3")


def test_grows_to_the_most_when_full_and_shrinks_to_the_least_when_idle(
    serve: Callable[..., Serve], tmp_path: Path
) -> None:
    busy = tmp_path / "busy"
    busy.touch()
    server = serve("--instances", "1", "--busy-while", str(busy), *SCALING)
    server.wait_until_serving()
    wait_for(lambda: len(server.instances()) == 3, "three instances")
    server.wait_for_line("starting more instances: auto-scaling: freeness")
    busy.unlink()
    wait_for(lambda: len(server.instances()) == 1, "one instance")
    server.wait_for_line("stopped: empty after")
    busy.touch()
    wait_for(lambda: len(server.instances()) == 3, "three instances again")


def test_instance_that_gets_sigterm_drains_and_stops_for_good(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2")
    server.wait_until_serving()
    wait_for(lambda: len(server.instances()) == 2, "two instances")
    os.kill(server.instances()["i1"], signal.SIGTERM)
    server.wait_for_line("i1 stopped: empty after")
    assert set(server.instances()) == {"i0"}


def test_one_that_is_killed_while_scaling_is_on_is_replaced_once(serve: Callable[..., Serve]) -> None:
    """The launcher replaces it; auto-scaling must not do so, too."""
    server = serve("--instances", "2", *SCALING[:2], "--min-instances", "2", *SCALING[4:])
    server.wait_until_serving()
    wait_for(lambda: len(server.instances()) == 2, "two instances")
    os.kill(server.instances()["i0"], signal.SIGKILL)
    wait_for(lambda: set(server.instances()) == {"i1", "i2"}, "i2 in place of i0")
    time.sleep(1.0)  # three windows, in which auto-scaling could have made up for it
    assert set(server.instances()) == {"i1", "i2"}
    assert not [line for line in server.lines if "starting more" in line]
