"""What every command that talks to a running server has in common: flags, and sentences for what goes wrong."""

from __future__ import annotations

import argparse
import os
import re
from urllib.parse import urlsplit

from llumnix.errors import ServerRefused, ServerSilent, UsageError

DEFAULT_URL = "http://127.0.0.1:8000"

_WHY_NOT_VERIFIED = re.compile(r"certificate verify failed: (.+?)\.? \(_ssl")
_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "UNKNOWN_PROTOCOL",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNEXPECTED_EOF",
)
"""What OpenSSL says of a server that answers with something else."""

_UNIX = "unix:"

WANTS_KEY = "The server wants its API key; give it with --api-key or in LLUMNIX_API_KEY."


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--url` (else `LLUMNIX_URL`) and `--api-key` (else `LLUMNIX_API_KEY`, else `VLLM_API_KEY`)."""
    url = os.environ.get("LLUMNIX_URL") or DEFAULT_URL
    key = os.environ.get("LLUMNIX_API_KEY") or os.environ.get("VLLM_API_KEY")
    shown = url.replace("%", "%%")
    parser.add_argument("--url", default=url, help=f"Address of the server, or LLUMNIX_URL. Now: {shown}.")
    parser.add_argument("--api-key", default=key, help="Key of the server, or LLUMNIX_API_KEY, or VLLM_API_KEY.")


def an_id(text: str) -> str:
    """For a flag or an argument that names a request or an instance; a variable that is not set names none."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty, and no id")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("it is not UTF-8, and no id") from error
    return text


def unix_socket(url: str) -> str:
    """The path in `unix:PATH`; empty for another address."""
    return url.removeprefix(_UNIX) if url.startswith(_UNIX) else ""


def server_url(url: str) -> str:
    """`url` without a slash or `/v1` at the end, which clients of OpenAI's API are given. Raises UsageError."""
    import httpx

    if not url.isprintable() or " " in url:
        raise UsageError(f"--url {url!r} is not an address: it has a space, or what is not printed.")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        good = parts.scheme in ("http", "https") and bool(host) and parts.port != 0  # reads the port
        host.encode("idna")  # as it will be looked up
        good = good and bool(httpx.URL(url).host)
    except (ValueError, httpx.InvalidURL) as error:
        raise UsageError(f"--url {url} is not an address: {in_a_sentence(error)}.") from error
    if not good:
        raise UsageError(f"--url {url} is not an address: it must begin with http:// or https:// and name a host.")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def check_key(api_key: str | None) -> None:
    """Raises UsageError for one that no HTTP header can carry."""
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise UsageError("--api-key has characters that no HTTP header can carry.")


def in_a_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def no_answer(url: str, error: Exception, *, late: bool, broken: bool) -> ServerRefused:
    """A sentence about a server that cannot be reached, is too `late`, or was reached and gave no answer (`broken`).
    ServerSilent if it may answer later."""
    said = in_a_sentence(error)
    if "SSL" in said:
        return ServerRefused(_about_tls(url, said))
    if late:
        return ServerSilent(f"The server at {url} did not answer in time; is it overloaded, or another one?")
    if broken:
        then = "; should the address begin with https://?" if url.startswith("http://") else ""
        return ServerSilent(f"The server at {url} hung up without an answer{then} ({said})")
    return ServerSilent(f"No server answers at {url}; is it running? ({said})")


def _about_tls(url: str, said: str) -> str:
    if why := _WHY_NOT_VERIFIED.search(said):
        if "issuer" in why[1] or "self" in why[1]:
            return f"The certificate of {url} is not trusted: name the file of its CA in SSL_CERT_FILE ({why[1]})."
        return f"The certificate of {url} is not valid: {why[1]}."
    if "ALERT" in said:
        return (
            f"The server at {url} refuses TLS with us; does it want a certificate of ours? None can be given. ({said})"
        )
    if any(sign in said for sign in _NO_TLS):
        return f"The server at {url} does not speak TLS: should the address begin with http://? ({said})"
    return f"TLS with the server at {url} failed ({said})."
