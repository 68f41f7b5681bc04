"""A real Prometheus asks a real server: each panel of the Grafana board shows something, and no alert that may not."""

from __future__ import annotations

import asyncio
import math
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from frame.admin import Admin
from frame.checked import Server
from frame.server import free_port, wait_for
from frame.stream import Streaming, open_session

from monitoring_tools import PANELS, RULES, queries, tool

_CONFIG = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: llumnix
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
_WINDOW = "2m"  # all that happens here


@contextmanager
def prometheus(folder: Path, asked: int) -> Iterator[str]:
    """One that asks the server at this port; its address."""
    program, port = tool("prometheus"), free_port()
    (folder / "prometheus.yaml").write_text(_CONFIG.format(rules=RULES, port=asked))
    command = [
        *(program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield f"http://127.0.0.1:{port}/api/v1"
        finally:
            process.kill()


def answered(url: str, query: str) -> list[float]:
    """The values that Grafana would draw."""
    answer = httpx.get(f"{url}/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    values = [float(series["value"][1]) for series in answer["data"]["result"]]
    return [value for value in values if math.isfinite(value)]


def test_no_panel_is_empty_and_labels_stay_what_they_were(server: Server, tmp_path: Path) -> None:
    with prometheus(tmp_path, server.port) as url:
        wait_for(lambda: _asked(url), "a first scrape")
        asyncio.run(_streams_and_a_move(server))
        empty = {panel["title"] for panel in PANELS}

        def all_drawn() -> bool:
            for panel in PANELS:
                if all(answered(url, query) for query in queries(panel, _WINDOW)):
                    empty.discard(panel["title"])
            return not empty

        try:
            wait_for(all_drawn, "something to draw", timeout_s=30.0)
        except AssertionError as error:
            raise AssertionError(f"panels with nothing to draw: {sorted(empty)}") from error
        labels = httpx.get(f"{url}/labels").json()["data"]
        assert not [label for label in labels if label.startswith("exported_")], "Prometheus had to rename some of ours"
        assert not answered(url, 'count({__name__=~".+_created"})'), "series that nobody reads"
        assert answered(url, 'llumnix_migrations_total{outcome="moved", cause="by_hand"} > 0')
        joined = "vllm:kv_cache_usage_perc * on (job, instance, engine) group_left (instance_id) llumnix_engine_info"
        assert len(answered(url, joined)) == len(server.instances()), "vLLM's label leads to ours"
        rules = httpx.get(f"{url}/rules").json()["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} == {"ok"}
        stirred = {rule["name"] for rule in rules if rule["state"] != "inactive"}
        of_the_machine = {"LlumnixServerDown", "LlumnixSlowHandOver", "LlumnixFrontEndLags"}
        assert stirred <= of_the_machine, "the first pends where an answer took longer than Prometheus waits here"


async def _streams_and_a_move(server: Server) -> None:
    body: dict[str, Any] = {"prompt": "one two", "max_tokens": 800, "temperature": 0, "ignore_eos": True}
    async with open_session(server.url) as session:
        streams = [Streaming(session, body, name=f"watched-{number}") for number in range(4)]
        for each in streams:
            await each.reaches(5)
        admin = Admin(session)
        source = await admin.where(streams[0].id)
        target = next(instance for instance in await admin.running() if instance != source)
        assert (await admin.migrate(streams[0].id, target))[0] == 200
        await asyncio.gather(*streams)


def _asked(url: str) -> bool:
    """Until it has begun, Prometheus is not there, or answers every query with 503 and a word that is no JSON."""
    try:
        has_begun = httpx.get(httpx.URL(url).join("/-/ready")).is_success
    except httpx.TransportError:
        return False
    return has_begun and bool(answered(url, "llumnix_build_info"))
