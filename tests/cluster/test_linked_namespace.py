"""The other "machine" of tests is reached whatever earlier or other runs left on this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from linked_namespace import LinkedNamespace, namespaces, why_not_possible

pytestmark = [
    pytest.mark.io,
    pytest.mark.skipif(why_not_possible() is not None, reason=str(why_not_possible())),
]

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"


@pytest.fixture
def other_run() -> Iterator[LinkedNamespace]:
    """One whose process lives."""
    namespace = LinkedNamespace(os.getppid())
    yield namespace
    namespace.close()


@pytest.fixture
def killed_run() -> LinkedNamespace:
    """One whose process ended before it could tidy."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    namespace = LinkedNamespace(ended.pid)  # a pid stays its process' until that is waited for
    ended.wait()
    return namespace


def test_links_of_two_runs_that_live_do_not_meet(other_run: LinkedNamespace) -> None:
    mine = LinkedNamespace()
    try:
        assert_reached(mine)
        assert_reached(other_run)
    finally:
        mine.close()


def test_what_a_killed_run_left_is_removed(killed_run: LinkedNamespace) -> None:
    assert killed_run.name in namespaces()
    mine = LinkedNamespace()
    try:
        assert killed_run.name not in namespaces()
        assert_reached(mine)
    finally:
        mine.close()


def assert_reached(namespace: LinkedNamespace) -> None:
    with socket.create_server((namespace.ours, 0)) as listener:
        port = str(listener.getsockname()[1])
        subprocess.run([*namespace.inside, sys.executable, "-c", CONNECT, namespace.ours, port], check=True, timeout=20)
