"""Paths that the flags of `llumnix serve` name: what the engine or a front end would stumble over, some after minutes,
is told before anything starts.

Looked for with `os.path` and `os.stat`: in a folder that may not be entered nothing is there for us.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from llumnix.decision_log import STDOUT
from llumnix.errors import UsageError, in_a_clause
from llumnix.flags import ServeArguments, flag_values
from llumnix.paths import expanded

LOG_CONFIG = "VLLM_LOGGING_CONFIG_PATH"

_CERTIFICATES = ("--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certs")
_PLUGINS = ("--tool-parser-plugin", "--reasoning-parser-plugin")
_LOCAL_OR_ON_THE_HUB = ("--tokenizer", "--hf-config-path", "--generation-config", "--spec-model")
_NO_PATH = frozenset("{}\n")
"""A chat template with one of these is meant itself; vLLM asks the same."""
_CONFIG_FILES = ("config.json", "params.json")


def check_engine_paths(arguments: ServeArguments, log_config: str) -> None:
    """Those in flags of vLLM's, where its processes run on this machine. `log_config`: what the environment says in
    `LOG_CONFIG`. Raises UsageError."""
    check_certificates(arguments)
    for flag, path in (("--log-config-file", arguments.engine_flag("--log-config-file")), (LOG_CONFIG, log_config)):
        if path:
            _check_log_config(flag, path)
    for flag in _PLUGINS:
        plugin = arguments.engine_flag(flag) or ""
        if plugin.endswith(".py") or os.sep in plugin:  # else it is a module
            _read_text(flag, plugin)
    template = arguments.engine_flag("--chat-template") or ""
    if not _NO_PATH & {*template} and (os.sep in template or os.path.exists(template)):  # else it is one of vLLM's own
        _read_text("--chat-template", template)
    media = arguments.engine_flag("--allowed-local-media-path")
    if media and not os.path.isdir(media):
        raise UsageError(f"--allowed-local-media-path {media} is no folder.")
    if arguments.cluster.launcher == "local":
        _check_what_may_be_on_the_hub(arguments)


def check_certificates(arguments: ServeArguments) -> None:
    """Front ends read them, when instances are there; without one of the first two none is read."""
    files = {flag: path for flag in _CERTIFICATES if (path := arguments.engine_flag(flag))}
    if not files.keys() & set(_CERTIFICATES[:2]):
        return
    if _CERTIFICATES[0] not in files:
        raise UsageError("--ssl-keyfile is the key of a certificate, which --ssl-certfile names.")
    for flag, path in files.items():
        _refuse_unreadable(flag, path)
    certificate, key, authorities = map(files.get, _CERTIFICATES)
    assert certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # a terminal is not asked for one
    except (OSError, ValueError) as error:
        pair = "is no certificate with its key" if key is None else f"and --ssl-keyfile {key} are no pair"
        raise UsageError(f"--ssl-certfile {certificate} {pair} (OpenSSL: {_reason(error)}).") from error
    try:
        if authorities is not None:
            context.load_verify_locations(authorities)
    except (OSError, ValueError) as error:
        raise UsageError(f"--ssl-ca-certs {authorities} has no certificate (OpenSSL: {_reason(error)}).") from error


def _reason(error: OSError | ValueError) -> str:
    """`[SSL: NO_START_LINE] no start line (_ssl.c:1)`, without what says where in Python that was."""
    return re.sub(r"^\[[^]]*\] | \(_ssl.*", "", str(error))


def _check_log_config(flag: str, path: str) -> None:
    """vLLM would say the same of a file, and give its name apart; of others it prints a traceback."""
    try:
        config = json.loads(_read_text(flag, path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{flag} {path} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise UsageError(f"{flag} {path} must hold an object, as Python's logging.config.dictConfig takes it.")


def _check_what_may_be_on_the_hub(arguments: ServeArguments) -> None:
    named = [(flag, arguments.engine_flag(flag) or "") for flag in _LOCAL_OR_ON_THE_HUB]
    named += [("--lora-modules", os.path.expanduser(path)) for path in _adapters(arguments)]  # as vLLM reads these
    for flag, path in named:
        if is_a_path(path) and not os.path.exists(path):
            raise UsageError(f"{flag}: there is nothing at {path}.")


def _adapters(arguments: ServeArguments) -> Iterator[str]:
    """`NAME=PATH`, or JSON; vLLM says what is wrong with other words."""
    for word in flag_values(arguments.engine_flags, "--lora-modules"):
        if not word.startswith("{"):
            yield word.partition("=")[2]
            continue
        try:
            said = json.loads(word)
        except ValueError:
            continue
        if isinstance(said, dict) and isinstance(path := said.get("path"), str):
            yield path


def is_a_path(text: str) -> bool:
    """A name like `org/name` may be on the model hub, and vLLM reads `s3://…` and the like; this can be neither."""
    if "://" in text:
        return False
    return text.startswith(("/", ".", "~")) or text.count("/") > 1


def check_model(model: str) -> None:
    """A path must be there."""
    path = expanded(model)
    if os.path.isdir(path):
        if not any(os.path.exists(path / name) for name in _CONFIG_FILES):
            raise UsageError(f"{model} is not a model: it has no config.json.")
    elif not os.path.exists(path):
        if is_a_path(model):
            raise UsageError(f"There is no model at {model}.")
    else:
        _refuse_unreadable("The model", str(path))


def _read_text(flag: str, path: str) -> str:
    _refuse_unreadable(flag, path)
    try:
        return Path(path).read_text()
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be read: {in_a_clause(error)}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag} {path} is no text: {error}.") from error


def _refuse_unreadable(flag: str, path: str) -> None:
    """Unless it is a file that several processes can read, one after the other."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be read: {in_a_clause(error)}.") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{flag} {path} cannot be read: it is a folder.")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{flag} {path} cannot be read: it is a pipe or a device, and several processes read it.")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{flag} {path} cannot be read: permission denied.")


def check_decision_log(path: str) -> None:
    """Each process writes its own, later; what keeps one from it keeps all."""
    folder = Path(path).parent
    if path not in ("", STDOUT) and not _may_write_to(folder):
        raise UsageError(f"--decision-log {path} cannot be written: {folder} is no folder that we may write to.")


def check_record(name: str, folder: str) -> None:
    """The processes make it, and what is in it, later. `name`: of what asks for it."""
    if not folder:
        return
    whole = expanded(folder).absolute()
    there = next(each for each in (whole, *whole.parents) if os.path.exists(each))
    if not _may_write_to(there):
        raise UsageError(f"{name} {folder} cannot be written: {there} is no folder that we may write to.")


def _may_write_to(folder: Path) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
