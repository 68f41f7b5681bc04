"""What a user reads when the server serves."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from llumnix.cluster.greeting import greeting
from llumnix.cluster.health import ServerAddress
from llumnix.flags import parse_serve

EXAMPLE = ("/v1/completions", {"prompt": "Hello", "max_tokens": 16})


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of open files."""
    most = [65536]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most[0], most[0]))
    return most


def lines(
    words: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str = "",
    example: tuple[str, dict[str, object]] | None = EXAMPLE,
) -> list[str]:
    arguments = parse_serve(words.split())
    address = ServerAddress(host, port, "--ssl-certfile" in words, arguments.engine_flag("--uds"))
    return greeting(arguments, address, Path("/logs"), example, {"VLLM_API_KEY": key}).splitlines()


def test_where_what_under_which_rules_and_what_next() -> None:
    assert lines("--instances 3 --scaling on --max-instances 4") == [
        "serving tiny at http://127.0.0.1:8000",
        (
            "  try      curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d "
            """'{"model": "tiny", "prompt": "Hello", "max_tokens": 16}'"""
        ),
        "  rules    policy llumnix, migration on, 3 instances, auto-scaling on",
        "  logs     /logs (gone at the end; --log-dir DIR keeps them)",
        (
            "  next     http://127.0.0.1:8000/llumnix/ in a browser; llumnix status, llumnix requests, "
            "llumnix drain i0 (llumnix --help)"
        ),
    ]


def test_another_address_and_a_key_are_said_before_the_commands_that_need_them() -> None:
    said = lines("my/model --served-model-name mine other --log-dir x --api-key k --no-migration", "0.0.0.0", 9000)
    assert said[0] == "serving mine at http://127.0.0.1:9000"
    assert """ -H "Authorization: Bearer $LLUMNIX_API_KEY" """ in said[1]
    assert '"model": "mine"' in said[1]
    assert "migration off" in said[2]
    assert said[3] == "  logs     /logs"
    assert said[4].startswith(
        "  next     http://127.0.0.1:9000/llumnix/ in a browser; export LLUMNIX_URL=http://127.0.0.1:9000 "
        "LLUMNIX_API_KEY=…, then llumnix status"
    )
    assert "k" not in " ".join(said).split()


def test_few_open_files_are_told(limit: list[int]) -> None:
    limit[0] = 512
    assert lines("m")[3] == "  limit    512 open files in a process (ulimit -Hn): fewer requests than that at a time"
    limit[0] = resource.RLIM_INFINITY
    assert len(lines("m")) == 5


def test_a_key_from_the_environment_counts() -> None:
    assert "Bearer $LLUMNIX_API_KEY" in lines("m", key="secret")[1]
    assert "secret" not in "".join(lines("m", key="secret"))


def test_certificates_sockets_and_admin_ports() -> None:
    assert "curl -k https://127.0.0.1:8000/v1" in lines("m --ssl-certfile c --ssl-keyfile k")[1]
    assert "curl --unix-socket /s http://localhost/v1" in lines("m --uds /s --admin-port 9001")[1]
    assert "LLUMNIX_URL=http://127.0.0.1:9001," in lines("m --uds /s --admin-port 9001")[-1]
    assert lines("m --uds /s")[-1].startswith("  next     export LLUMNIX_URL=unix:/s, then llumnix status, ")


def test_live_page_is_named_where_a_browser_finds_it() -> None:
    assert "http://127.0.0.1:9001/llumnix/ in" in lines("m --admin-port 9001")[-1]
    assert "https://127.0.0.1:8000/llumnix/ in" in lines("m --ssl-certfile c --ssl-keyfile k")[-1]
    assert "/llumnix/" not in lines("m --page off")[-1]
    assert "/llumnix/" not in lines("m --uds /s")[-1]


def test_an_engine_that_names_no_example_gets_no_line_to_try() -> None:
    assert not any(line.startswith("  try") for line in lines("m", example=None))
