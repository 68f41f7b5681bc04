"""The HTTP socket: bound by the nursery, so that all front ends inherit it."""

from __future__ import annotations

import argparse
import os
import socket
import stat
from pathlib import Path

from llumnix.errors import UsageError


def bind(args: argparse.Namespace, host: str) -> socket.socket:
    """Binds the HTTP socket, as vLLM does; it starts to listen when a front end serves. Raises UsageError.

    Until then SO_REUSEADDR is off: with it, Linux has others bind the port, too, and gives it to who listens first.
    Binding needs it, and so does listening (`serve_front_end`), where a server before this one has left connections.
    """
    from vllm.entrypoints.launchers.launcher import setup_server

    if args.uds:
        _remove_if_left_behind(args.uds)
    try:
        _, sock = setup_server(args, reuse_port=False)
    except OSError as error:
        what = f"The socket {args.uds}" if args.uds else f"Port {args.port} on {host}"
        raise UsageError(f"{what} cannot be used: {error.strerror or error}.") from error
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return sock


def _remove_if_left_behind(path: str) -> None:
    """What a killed server has left: nobody can bind the name again, or reach anybody by it."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    sockets = os.fsdecode(Path("/proc/net/unix").read_bytes()).split("\n")  # of all processes, and any bytes
    bound = {columns[7] for columns in (line.split(maxsplit=7) for line in sockets) if len(columns) == 8}
    if bound & {path, os.path.abspath(path)}:
        return  # by a server that may not listen yet
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # binding says what is wrong
