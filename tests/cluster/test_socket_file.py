"""The file of the server's unix socket: it goes with the server, and another server's stays."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from llumnix.cluster.socket_file import remover


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_the_file_goes_when_the_server_ends(tmp_path: Path) -> None:
    path = tmp_path / "llm.sock"
    bind(path)
    remove = remover(str(path))
    assert path.is_socket()
    remove()
    assert not path.exists()
    remove()  # there is nothing left to do


def test_the_file_of_the_next_server_stays_even_with_the_same_number(tmp_path: Path) -> None:
    path = tmp_path / "llm.sock"
    bind(path)
    remove = remover(str(path))
    before = path.stat()
    for _ in range(50):  # a file system gives out a number again, sooner or later
        path.unlink()
        bind(path)
        if path.stat().st_ino == before.st_ino:
            break
    if path.stat().st_mtime_ns == before.st_mtime_ns:  # its clock may be coarse
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    remove()
    assert path.is_socket()


def test_without_a_socket_nothing_is_removed(tmp_path: Path) -> None:
    remover(None)()
    path = tmp_path / "llm.sock"
    remove = remover(str(path))
    bind(path)
    remove()
    assert path.is_socket()
