"""The other "machine" of tests is reached whatever earlier or other runs left on this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import linked_namespace
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


def test_runs_that_begin_at_the_same_moment_have_links_of_their_own() -> None:
    """Each begins while the process that it is named after lives."""
    owners = [subprocess.Popen(["sleep", "60"]) for _ in range(4)]
    try:
        with ThreadPoolExecutor(len(owners)) as pool:
            made = list(pool.map(LinkedNamespace, [owner.pid for owner in owners]))
        assert len({each.ours for each in made}) == len(owners)
        for each in made:
            assert_reached(each)
    finally:
        for owner in owners:
            owner.kill()
            owner.wait()
        linked_namespace.remove_leftovers()  # theirs, however many were made


def test_process_that_ends_before_it_is_ended_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    told = subprocess.CompletedProcess([], 0, stdout=f"{ended.pid}\n", stderr="")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", lambda *_, **__: told)
        linked_namespace._end_all("nobody's")


def assert_reached(namespace: LinkedNamespace) -> None:
    with socket.create_server((namespace.ours, 0)) as listener:
        port = str(listener.getsockname()[1])
        subprocess.run([*namespace.inside, sys.executable, "-c", CONNECT, namespace.ours, port], check=True, timeout=20)
