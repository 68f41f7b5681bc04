"""Words of a line that cannot be meant so."""

from __future__ import annotations

import pytest

from llumnix.cluster.preflight import check, check_root_path
from llumnix.cluster.preflight_paths import check_model, check_record
from llumnix.errors import UsageError
from llumnix.flags import parse_serve
from llumnix.tiny_model import cache_dir


@pytest.mark.parametrize("root", ["/llumnix", "/llumnix/", "/llumnix/v1", "/llumnix//"])
def test_root_path_that_would_hide_our_routes_is_refused(root: str) -> None:
    with pytest.raises(UsageError, match=f"--root-path must not be {root}: below /llumnix/ are the page"):
        check(parse_serve(["--root-path", root]))


@pytest.mark.parametrize("root", ["", "/", "/ai", "/ai/llumnix", "/llumnix-ai", "/v1"])
def test_root_path_of_a_proxy_is_taken(root: str) -> None:
    check_root_path(root)


NOBODYS = "~nobody.has.this.name/x"


def test_home_of_nobody_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", NOBODYS)
    for read in (
        lambda: check_model(NOBODYS),
        lambda: check_record("--record", NOBODYS),
        lambda: parse_serve(["--log-dir", NOBODYS]),
        lambda: parse_serve([NOBODYS]),
        lambda: parse_serve(["--config", NOBODYS]),
        lambda: parse_serve(["--classes", NOBODYS]),
        cache_dir,
    ):
        with pytest.raises(UsageError, match="names no home: there is no such user"):
            read()
