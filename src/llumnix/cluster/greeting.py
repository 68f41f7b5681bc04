"""What `llumnix serve` says once it serves: where, what, under which rules, and what to do next."""

from __future__ import annotations

import json
import resource
import shlex
from collections.abc import Mapping
from pathlib import Path

from llumnix.cluster.health import ServerAddress
from llumnix.flags import ServeArguments, has_flag
from llumnix.remote import DEFAULT_URL

_KEY = "LLUMNIX_API_KEY"
_MANY_FILES = 4096


def greeting(
    arguments: ServeArguments,
    address: ServerAddress,
    log_dir: Path | None,
    example: tuple[str, Mapping[str, object]] | None,
    environment: Mapping[str, str],
) -> str:
    """Six lines at most. `example`: a route and the body of a request to it, but for the model's name."""
    name = model_name(arguments)
    locked = has_flag(arguments.engine_flags, "--api-key") or bool(environment.get("VLLM_API_KEY"))
    lines = [f"serving {name} at {address}"]
    if example is not None:
        path, body = example
        lines.append("  try      " + _curl(address, path, {"model": name, **body}, locked))
    lines.append("  rules    " + _rules(arguments))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < _MANY_FILES and files != resource.RLIM_INFINITY:
        lines.append(f"  limit    {files} open files in a process (ulimit -Hn): fewer requests than that at a time")
    if log_dir is not None:
        kept = "" if arguments.cluster.log_dir else " (gone at the end; --log-dir DIR keeps them)"
        lines.append(f"  logs     {log_dir}{kept}")
    lines.append("  next     " + _next(arguments, address, locked))
    return "\n".join(lines)


def model_name(arguments: ServeArguments) -> str:
    """What clients have to call it."""
    return arguments.engine_flag("--served-model-name") or arguments.model or "tiny"


def _curl(address: ServerAddress, path: str, body: Mapping[str, object], locked: bool) -> str:
    words = ["curl"]
    if address.unix_socket is not None:
        words += ["--unix-socket", shlex.quote(address.unix_socket), f"http://localhost{path}"]
    else:
        words += [*(["-k"] if address.tls else []), f"{address}{path}"]
    if locked:
        words += ["-H", f'"Authorization: Bearer ${_KEY}"']
    return " ".join([*words, "-H", "'Content-Type: application/json'", "-d", shlex.quote(json.dumps(body))])


def _rules(arguments: ServeArguments) -> str:
    policy, cluster = arguments.policy, arguments.cluster
    moves = "on" if policy.migration else "off"
    return (
        f"policy {policy.policy}, migration {moves}, {cluster.instances} "
        f"instance{'s' if cluster.instances > 1 else ''}, auto-scaling {cluster.scaling}"
    )


def _next(arguments: ServeArguments, address: ServerAddress, locked: bool) -> str:
    port = arguments.cluster.admin_port
    url = str(ServerAddress(address.host, port, address.tls) if port else address)
    hidden = arguments.cluster.page == "off" or (address.unix_socket is not None and not port)
    page = "" if hidden else f"{url}/llumnix/ in a browser; "
    commands = "llumnix status, llumnix requests, llumnix drain i0 (llumnix --help)"
    needed = [f"LLUMNIX_URL={shlex.quote(url)}"] if url != DEFAULT_URL else []
    needed += [f"{_KEY}=…"] if locked else []
    return page + (f"export {' '.join(needed)}, then {commands}" if needed else commands)
