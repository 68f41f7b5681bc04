"""Checks before anything is started: what would fail later anyway is said now, in a sentence.

Only cheap and certain objections; vLLM's own checks of its flags follow in the nursery. What paths lead to is looked at
in preflight_paths.py.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import socket
from collections.abc import Mapping

from llumnix import hosts, vllm_words
from llumnix.api.routes import PREFIX
from llumnix.cluster import devices
from llumnix.cluster.preflight_paths import (
    LOG_CONFIG,
    check_decision_log,
    check_engine_paths,
    check_model,
    check_record,
)
from llumnix.engine import gpus
from llumnix.errors import UsageError
from llumnix.flags import DEFAULT_ENGINE, ServeArguments, has_flag
from llumnix.hosts import why_unusable
from llumnix.recording import RECORD

DEFAULT_PORT = 8000

_RAY_ANSWERS_S = 5.0
_KEPT_BY_ONE = {
    "VLLM_ENABLE_RESPONSES_API_STORE": "responses",
    "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "sessions",
}
_FILES, _FILES_PER_INSTANCE = 100, 4


def check(arguments: ServeArguments) -> int | None:
    """For how many instances there are GPUs; None where nothing says so. Raises UsageError."""
    check_root_path(arguments.engine_flag("--root-path") or "")
    fit = None
    if arguments.engine == DEFAULT_ENGINE:
        check_vllm()
        if (why := vllm_words.refused_variable(os.environ)) is not None:
            raise UsageError(why)
        devices.check_ways(arguments.migration.ways)
        devices.check_sharing(arguments)
        check_engine_paths(arguments, os.environ.get(LOG_CONFIG, ""))
        if arguments.cluster.launcher == "local":
            devices.check_memory(arguments)
            devices.check_shared_memory(arguments)
            fit = devices.check_gpus(arguments, gpus.installed(), os.environ)
    if arguments.model is not None:
        check_model(arguments.model)
    if arguments.front_ends > 1:
        check_nothing_is_kept_by_one_front_end(os.environ)
    check_port(arguments)
    check_files(arguments)
    check_decision_log(arguments.cluster.decision_log)
    check_record("--record", arguments.cluster.record)
    check_record(RECORD, os.environ.get(RECORD, ""))
    if arguments.cluster.launcher == "ray":
        check_ray(arguments.cluster.ray_address)
    return fit


def check_nothing_is_kept_by_one_front_end(environment: Mapping[str, str]) -> None:
    """A client's next connection may go to another one."""
    for name, what in _KEPT_BY_ONE.items():
        if environment.get(name, "").strip().lower() not in ("", "0", "false", "no", "off"):
            raise UsageError(f"{name} has a front end keep {what}, which others do not know: use one front end.")


def check_files(arguments: ServeArguments) -> None:
    """The launcher, the scheduler and each front end hold some sockets for every instance."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(arguments.cluster.instances, arguments.scaling.max_instances)
    needed = _FILES + _FILES_PER_INSTANCE * most
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UsageError(
            f"{most} instances need {needed} open files in a process, but the system allows {hard} (ulimit -Hn): "
            "raise that limit, or use fewer instances."
        )


def check_vllm() -> None:
    version = vllm_words.installed_version()
    if version is None:
        raise UsageError(
            f"vLLM is not installed; run `make env` in a checkout, or {vllm_words.ADVICE} on a machine with GPUs."
        )
    if not vllm_words.supports(version):
        raise UsageError(
            f"vLLM {version} is installed, but {vllm_words.SUPPORTED_WORDS} is needed: {vllm_words.ADVICE}."
        )


def check_root_path(root: str) -> None:
    """What begins with it is looked up without it, and so our routes would not be found."""
    ours = "/" + PREFIX.split("/")[1]
    if root.rstrip("/") == ours or root.startswith(f"{ours}/"):
        raise UsageError(f"--root-path must not be {root}: below {ours}/ are the page and the admin routes.")


def check_ray(address: str) -> None:
    """Ray itself would try for a minute what a connection shows at once."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("Ray is not installed: pip install 'ray>=2.60', or leave out --launcher ray.")
    if address in ("", "auto"):
        return
    try:
        head = hosts.split(address)
    except ValueError as error:
        raise UsageError(f"--ray-address must be HOST:PORT or auto, not {address}.") from error
    try:
        socket.create_connection(head, timeout=_RAY_ANSWERS_S).close()
    except (OSError, UnicodeError) as error:
        reason = "it does not answer" if isinstance(error, TimeoutError) else why_unusable(error)
        raise UsageError(f"The Ray cluster at {address} cannot be reached: {reason}.") from error


def check_port(arguments: ServeArguments) -> None:
    """The nursery opens the socket for good; this only says so ten seconds earlier."""
    host = arguments.engine_flag("--host") or "127.0.0.1"
    numbers = {"--admin-port": arguments.cluster.admin_port}
    if not has_flag(arguments.engine_flags, "--uds"):
        numbers["--port"] = port_number(arguments.engine_flag("--port") or str(DEFAULT_PORT))
    if (reason := why_taken(host, 0)) is not None:
        raise UsageError(f"Nobody can listen on --host {host} here: {reason}.")
    for flag, number in numbers.items():
        if (reason := why_taken(host, number)) is not None:
            raise UsageError(f"Port {number} on {host} cannot be opened: {reason}; choose another with {flag}.")


def port_number(text: str) -> int:
    """Raises UsageError if there can be no such port."""
    if not text.isdecimal() or int(text) > 65535:
        raise UsageError(f"--port must be a number below 65536, not {text}.")
    return int(text)


def why_taken(host: str, port: int) -> str | None:
    """Why nobody can listen there; None if somebody can. Port 0 is always free."""
    try:
        with socket.socket(hosts.family(host), socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        return why_unusable(error)
    return None
