"""The files of the live page: what is in them, and how they are served."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

pytest.importorskip("vllm")

from admin_board import Board, app_of
from fastapi import FastAPI

from llumnix.control.orders import MoveCause, StayCause
from llumnix.engine.vllm.front_end import index
from llumnix.engine.vllm.front_end.page.files import FOLDER
from llumnix.journal.story import FIRST_KEPT
from llumnix.journal.words import PARTS

ROOT = Path(__file__).parents[2]
OURS = sorted(path for path in FOLDER.iterdir() if path.is_file())
VENDORED = (FOLDER / "vendor", Path(__file__).parent / "axe")
PACKAGES = {"vendor": {"preact", "htm", "uplot"}, "axe": {"axe-core"}}


async def get(path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app_of(Board()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize("folder", VENDORED, ids=lambda folder: folder.name)
def test_what_others_made_is_as_it_was_fetched_with_its_licence(folder: Path) -> None:
    lines = (folder / "sha256.txt").read_text().splitlines()
    wanted = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "sha256.txt"
    }
    assert found == wanted, "run scripts/vendor_page.py"
    assert {f"LICENSE-{name}" for name in PACKAGES[folder.name]} <= set(found)


def test_every_file_is_shipped() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["llumnix"]
    package = ROOT / "src" / "llumnix"
    files = [path.relative_to(package).as_posix() for path in FOLDER.rglob("*") if path.is_file()]
    assert len(files) > 15
    shipped = [name for name in files if any(fnmatch(name, pattern) for pattern in patterns)]
    assert shipped == files


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_ours_name_no_other_host_and_only_files_that_there_are(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"\w+://[^/\"'\s]+", text)) <= {"http://www.w3.org"}, "the name of SVG"
    named = re.findall(r"(?:href|src)=\"page/([^\"]+)\"", text)
    named += re.findall(r"from \"\./([^\"]+)\"", text)
    assert [name for name in named if not (FOLDER / name).exists()] == []
    assert len(text.splitlines()) <= 300


def test_every_word_that_a_view_explains_has_an_explanation() -> None:
    lists = [found for path in OURS for found in re.findall(r"Words} of=\$\{(\[.*?\])\}", path.read_text())]
    used = {word for words in lists for word in json.loads(words)}
    assert len(lists) >= 4
    assert used <= json.loads((FOLDER / "words.json").read_text()).keys()


def words_in(file: str, name: str) -> dict[str, str]:
    """Of an object in one of our files."""
    (found,) = re.findall(rf"const {name} = \{{(.*?)\}};", (FOLDER / file).read_text(), re.DOTALL)
    return dict(re.findall(r'(\w+): "([^"]+)"', found))


def test_page_has_a_word_for_all_that_there_can_be() -> None:
    assert words_in("moves.js", "CAUSES").keys() == set(MoveCause)
    assert words_in("moves.js", "STAYED_BY").keys() == set(StayCause)
    assert words_in("story.js", "PARTS") == PARTS, "the same as `llumnix explain`"
    assert f"const FIRST_KEPT = {FIRST_KEPT};" in (FOLDER / "story.js").read_text()


async def test_page_wants_no_key_and_lets_nothing_of_others_in() -> None:
    page = await get("/llumnix/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script>|<style|style=|onclick=", page.text)
    bare = await get("/llumnix")
    assert (bare.status_code, bare.headers["location"]) == (307, "llumnix/")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("app.js", "text/javascript"),
        ("look.css", "text/css"),
        ("mark.svg", "image/svg+xml"),
        ("vendor/htm.js", "text/"),
    ],
)
async def test_file_is_fetched_again_only_when_it_has_changed(name: str, kind: str) -> None:
    first = await get(f"/llumnix/page/{name}")
    assert first.status_code == 200
    assert first.headers["content-type"].startswith(kind)
    assert first.headers["x-content-type-options"] == "nosniff"
    again = await get(f"/llumnix/page/{name}", **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await get(f"/llumnix/page/{name}", **{"If-None-Match": '"another"'})
    assert other.content == first.content


@pytest.mark.parametrize(
    "name", ["", "nothing.js", "../page.py", "..%2fpage.py", "vendor", "vendor/sha256.txt", "/etc/passwd", "app.js/"]
)
async def test_nothing_else_is_served(name: str) -> None:
    assert (await get(f"/llumnix/page/{name}")).status_code == 404


@pytest.mark.parametrize("page", [True, False])
async def test_index_names_the_page_where_there_is_one(page: bool) -> None:
    app = FastAPI()
    index.add_routes(app, openai=True, admin=True, page=page)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        root, there = await client.get("/"), await client.get("/llumnix/")
    assert ("GET /llumnix/" in root.json()["routes"]) == page
    for path in ("watch", "watch/requests", "history"):
        assert (f"GET /llumnix/v1/{path}" in root.json()["routes"]) == page
    assert there.status_code == (404 if page else 200)
