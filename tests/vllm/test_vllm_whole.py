"""What vLLM keeps in each server process is one thing here: over two front ends, two instances, and those to come."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from frame.checked import Server
from frame.lora import RANK, make_adapter
from frame.server import wait_for

pytestmark = pytest.mark.timeout(300)

CONNECTIONS = 6  # some at either front end: each takes the next one that has fewer
HERE, THERE = 0, 1
"""Connections to one front end and to the other."""


ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",  # a connection stays where it is
}
EXPECTED_TROUBLE = ("Traceback (most recent call last)",)
"""vLLM tells so of each order that fails, and some are to."""


def flags(folder: Path) -> tuple[str, ...]:
    profile = f'{{"profiler": "torch", "torch_profiler_dir": "{folder}/profile"}}'
    return (
        *("--no-migration", "--api-server-count", "2", "--enable-lora", "--max-lora-rank", str(RANK)),
        *("--max-loras", "2", "--max-cpu-loras", "8", "--lora-modules", f"north={make_adapter(folder / 'north', 1)}"),
        *("--enable-server-load-tracking", "--enable-prompt-tokens-details", "--profiler-config", profile),
    )


class Everywhere:
    """The server, by connections to both of its front ends."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.clients: list[httpx.Client] = []
        self.connect()

    def connect(self) -> None:
        """Anew, until both front ends have some."""
        wait_for(self._reaches_both, "connections to both front ends")

    def _reaches_both(self) -> bool:
        self.close()
        lasting = httpx.Limits(keepalive_expiry=None)
        self.clients = [
            httpx.Client(base_url=self.server.url, timeout=60.0, limits=lasting) for _ in range(CONNECTIONS)
        ]
        served_by = [self._front_end(client) for client in self.clients]
        others = [number for number, name in enumerate(served_by) if name != served_by[HERE]]
        if None in served_by or not others:
            return False
        there = others[0]
        self.clients[THERE], self.clients[there] = self.clients[there], self.clients[THERE]
        return True

    def _front_end(self, client: httpx.Client) -> str | None:
        """The one that has this client's connection, where it stays."""
        answer = client.get("/health")
        assert answer.status_code == 200
        ends = (self.server.port, answer.extensions["network_stream"].get_extra_info("client_addr")[1])
        for name in ("front-0", "front-1"):
            with contextlib.suppress(AssertionError, psutil.Error):  # it starts
                for each in self.server.descendant(name).net_connections("tcp"):
                    if each.raddr and (each.laddr.port, each.raddr.port) == ends:
                        return name
        return None

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def post(self, number: int, path: str, **options: Any) -> httpx.Response:
        return self.clients[number].post(path, **options)

    def on_all(self, ask: Callable[[httpx.Client], Any]) -> list[Any]:
        """One after the other: a second connection of a client would be anybody's."""
        return [ask(client) for client in self.clients]

    def told(self, path: str, field: str) -> set[Any]:
        """What all connections say of it."""
        return set(self.on_all(lambda client: client.get(path).json()[field]))

    def add_instance(self) -> int:
        """Its slot, once every front end sends requests there."""
        before = {row["id"] for row in self.server.instances()}
        assert self.post(HERE, "/llumnix/v1/instances", json={"count": 1}).status_code == 202

        def seen(client: httpx.Client) -> bool:
            rows = client.get("/llumnix/v1/instances").json()["instances"]
            return bool({row["id"] for row in rows if row["state"] == "running"} - before)

        wait_for(lambda: all(self.on_all(seen)), "a further instance at all front ends")
        return len(self.server.instances()) - 1


def say(client: httpx.Client, model: str = "tiny", slot: int | None = None, tokens: int = 12) -> httpx.Response:
    body = {"model": model, "prompt": "north by north", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    headers = {} if slot is None else {"X-data-parallel-rank": str(slot)}
    return client.post("/v1/completions", json=body, headers=headers)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    said: str = response.json()["choices"][0]["text"]
    return said


@pytest.fixture(scope="module")
def all_of_it(server: Server) -> Iterator[Everywhere]:
    made = Everywhere(server, server.folder)
    yield made
    made.close()


def test_adapters_are_known_and_right_at_all_front_ends_and_on_all_instances(all_of_it: Everywhere) -> None:
    for number, name in ((HERE, "alpha"), (THERE, "beta")):
        path = str(make_adapter(all_of_it.folder / name, seed=10 + number))
        answer = all_of_it.post(number, "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})
        assert answer.status_code == 200, answer.text
    names = ("tiny", "north", "alpha", "beta")
    said = {name: text(say(all_of_it.clients[HERE], name, 0)) for name in names}
    assert len(set(said.values())) == len(names)
    for name in names:
        for slot in (0, 1):
            texts = all_of_it.on_all(lambda client, name=name, slot=slot: text(say(client, name, slot)))  # type: ignore[misc]
            assert set(texts) == {said[name]}, (name, slot)
    again = all_of_it.post(2, "/v1/load_lora_adapter", json={"lora_name": "beta", "lora_path": "/nowhere"})
    assert again.status_code == 400
    broken = all_of_it.post(3, "/v1/load_lora_adapter", json={"lora_name": "broken", "lora_path": "/nowhere"})
    assert broken.status_code == 404, broken.text


def test_adapter_that_cannot_be_loaded_keeps_no_instance_out(all_of_it: Everywhere) -> None:
    (all_of_it.folder / "alpha").rename(all_of_it.folder / "away")
    alpha = text(say(all_of_it.clients[HERE], "alpha", 0))
    slot = all_of_it.add_instance()
    assert len(set(all_of_it.on_all(lambda client: text(say(client, "beta", slot))))) == 1
    refused = say(all_of_it.clients[HERE], "alpha", slot)
    assert refused.status_code == 503
    assert all(
        text(answer) == alpha for _ in range(2) for answer in all_of_it.on_all(lambda client: say(client, "alpha"))
    )
    (all_of_it.folder / "away").rename(all_of_it.folder / "alpha")
    loaded = lambda: {r.status_code for r in all_of_it.on_all(lambda client: say(client, "alpha", slot))} == {200}  # noqa: E731
    wait_for(loaded, "another attempt to load the adapter")
    assert set(all_of_it.on_all(lambda client: text(say(client, "alpha", slot)))) == {alpha}


def test_unloaded_adapter_is_forgotten_everywhere(all_of_it: Everywhere) -> None:
    assert all_of_it.post(THERE, "/v1/unload_lora_adapter", json={"lora_name": "alpha"}).status_code == 200
    shutil.rmtree(all_of_it.folder / "alpha")
    assert {answer.status_code for answer in all_of_it.on_all(lambda client: say(client, "alpha"))} == {404}
    models = all_of_it.on_all(lambda client: {row["id"] for row in client.get("/v1/models").json()["data"]})
    assert models == [{"tiny", "north", "beta"}] * CONNECTIONS


def test_restarted_front_end_knows_what_the_others_know(all_of_it: Everywhere) -> None:
    beta, north = (text(say(all_of_it.clients[HERE], name)) for name in ("beta", "north"))
    (all_of_it.folder / "north").rename(all_of_it.folder / "elsewhere")  # which is on the command line
    assert all_of_it.post(HERE, "/pause", params={"mode": "keep"}).status_code == 200
    old = all_of_it.server.descendant("front-0").pid
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: _other_pid(all_of_it.server, old), "another front end")
    all_of_it.connect()
    assert all_of_it.told("/is_paused", "is_paused") == {True}
    assert all_of_it.post(THERE, "/resume").status_code == 200
    assert set(all_of_it.on_all(lambda client: text(say(client, "beta")))) == {beta}
    assert set(all_of_it.on_all(lambda client: text(say(client, "north")))) == {north}
    (all_of_it.folder / "elsewhere").rename(all_of_it.folder / "north")
    for number, name in enumerate(("gamma", "delta")):
        path = str(make_adapter(all_of_it.folder / name, seed=20 + number))
        answer = all_of_it.post(number, "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})
        assert answer.status_code == 200, answer.text
    said = [all_of_it.on_all(lambda client, name=name: text(say(client, name))) for name in ("beta", "gamma", "delta")]  # type: ignore[misc]
    assert [len(set(texts)) for texts in said] == [1, 1, 1]
    assert len({texts[0] for texts in said}) == 3


def _other_pid(server: Server, old: int) -> bool:
    try:
        return bool(server.descendant("front-0").pid != old)
    except (AssertionError, psutil.Error):
        return False


def test_paused_means_all_of_it_also_what_starts_then(all_of_it: Everywhere) -> None:
    assert all_of_it.post(HERE, "/pause", params={"mode": "keep"}).status_code == 200
    assert all_of_it.told("/is_paused", "is_paused") == {True}
    slot = all_of_it.add_instance()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        waiting = [threads.submit(say, client, "tiny", slot) for client in all_of_it.clients]
        time.sleep(1.0)
        assert not any(each.done() for each in waiting)
        assert httpx.post(f"{all_of_it.server.url}/resume").status_code == 200
        assert len({text(each.result(timeout=30)) for each in waiting}) == 1
    assert all_of_it.told("/is_paused", "is_paused") == {False}


def test_sleep_and_waking_up_in_parts(all_of_it: Everywhere) -> None:
    assert all_of_it.post(HERE, "/sleep", params={"level": 1}).status_code == 200
    assert all_of_it.told("/is_sleeping", "is_sleeping") == {True}
    assert all_of_it.post(THERE, "/wake_up", params={"tags": "weights"}).json()["status"] == "sleeping"
    assert all_of_it.told("/is_sleeping", "is_sleeping") == {True}
    assert all_of_it.post(HERE, "/wake_up", params={"tags": "kv_cache"}).json()["status"] == "awake"
    assert all_of_it.told("/is_sleeping", "is_sleeping") == {False}
    assert len(set(all_of_it.on_all(lambda client: text(say(client))))) == 1


def test_what_cannot_be_done_leaves_all_as_it_was(all_of_it: Everywhere) -> None:
    assert all_of_it.post(HERE, "/release_kv_cache_memory").status_code == 500, "nobody has paused it"
    all_of_it.connect()  # vLLM's server closes the connection then
    assert all_of_it.told("/is_sleeping", "is_sleeping") == {False}
    assert len(set(all_of_it.on_all(lambda client: text(say(client))))) == 1


@pytest.mark.parametrize("path", ["/reset_mm_cache", "/reset_encoder_cache"])
def test_caches_of_media_are_reset_from_any_front_end(all_of_it: Everywhere, path: str) -> None:
    for number in (HERE, THERE):
        assert all_of_it.post(number, path).status_code == 200


@pytest.mark.parametrize("number", [HERE, THERE])
def test_prefix_caches_are_reset_on_all_instances(all_of_it: Everywhere, number: int) -> None:
    slots = range(len(all_of_it.server.instances()))
    for slot in slots:
        cached_tokens(all_of_it.clients[THERE], slot)
        assert cached_tokens(all_of_it.clients[THERE], slot) > 0
    all_of_it.server.wait_until_quiet()
    answer = all_of_it.post(number, "/reset_prefix_cache")
    assert answer.status_code == 200
    assert not answer.content or answer.json() == {"success": True}
    assert [cached_tokens(all_of_it.clients[THERE], slot) for slot in slots] == [0] * len(slots)


def cached_tokens(client: httpx.Client, slot: int) -> int:
    """Of a prompt of many blocks, on the instance at this slot."""
    body = {"model": "tiny", "prompt": [7] * 600, "max_tokens": 4, "temperature": 0}
    answer = client.post("/v1/completions", json=body, headers={"X-data-parallel-rank": str(slot)})
    assert answer.status_code == 200, answer.text
    details: dict[str, int] = answer.json()["usage"].get("prompt_tokens_details") or {}
    return details.get("cached_tokens") or 0


def test_all_requests_are_counted_and_all_are_aborted(all_of_it: Everywhere) -> None:
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        running = [threads.submit(say, client, "tiny", None, 7000) for client in all_of_it.clients]
        wait_for(lambda: len(all_of_it.server.requests()) == CONNECTIONS, "all requests")
        assert httpx.get(f"{all_of_it.server.url}/load").json() == {"server_load": CONNECTIONS}
        aborted = httpx.post(f"{all_of_it.server.url}/abort_requests", json={})
        assert aborted.json() == {"status": "aborted", "aborted": CONNECTIONS}
        assert {each.result(timeout=30).json()["choices"][0]["finish_reason"] for each in running} == {"abort"}
    all_of_it.server.wait_until_quiet()


def test_requests_are_aborted_by_name_wherever_they_came_in(all_of_it: Everywhere) -> None:
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        running = [threads.submit(say, client, "tiny", None, 7000) for client in all_of_it.clients]
        wait_for(lambda: len(all_of_it.server.requests()) == CONNECTIONS, "all requests")
        names = [f"{row['id']}-0" for row in all_of_it.server.requests()]
        answer = httpx.post(f"{all_of_it.server.url}/abort_requests", json={"request_ids": names})
        assert answer.json() == {"status": "aborted", "aborted": CONNECTIONS}
        assert {each.result(timeout=30).json()["choices"][0]["finish_reason"] for each in running} == {"abort"}


@pytest.mark.nightly
def test_profiling_is_one_session(all_of_it: Everywhere) -> None:
    assert all_of_it.post(HERE, "/start_profile").status_code == 200
    all_of_it.on_all(say)
    for number in range(CONNECTIONS):
        assert all_of_it.post(number, "/start_profile").status_code >= 400, "it runs already"
    assert all_of_it.post(THERE, "/stop_profile").status_code == 200
    traces = [path.name for path in (all_of_it.folder / "profile").iterdir()]
    assert len(traces) >= len(all_of_it.server.instances()), traces


def test_calls_of_workers_reach_all_instances(all_of_it: Everywhere) -> None:
    for number in (HERE, THERE):
        answer = all_of_it.post(number, "/collective_rpc", json={"method": "list_loras"})
        assert len(answer.json()["results"]) == len(all_of_it.server.instances()), answer.text
    sums = all_of_it.on_all(lambda client: client.post("/weight_checker", json={"action": "checksum"}).text)
    assert len(set(sums)) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/init_weight_transfer_engine", {"init_info": {}}),
        ("/shutdown_weight_transfer_engine", None),
        ("/start_weight_update", None),
        ("/start_draft_weight_update", None),
        ("/update_weights", {"update_info": {}}),
        ("/finish_weight_update", {}),
        ("/update_weight_version", {"new_version": "2"}),
        ("/weight_checker", {"action": "reset"}),
        ("/collective_rpc", {"method": "update_weights"}),
        ("/scale_elastic_ep", {"new_data_parallel_size": 1}),
    ],
)
def test_what_instances_to_come_could_not_follow_is_refused(all_of_it: Everywhere, path: str, body: Any) -> None:
    for number in (HERE, THERE):
        answer = all_of_it.post(number, path, json=body)
        assert answer.status_code in (400, 501), answer.text
        assert "nstances" in answer.text


def test_metrics_are_of_the_instances_that_there_are(all_of_it: Everywhere) -> None:
    assert httpx.post(f"{all_of_it.server.url}/llumnix/v1/instances/i0/drain").status_code == 202
    wait_for(lambda: all_of_it.server.instance("i0")["state"] == "stopped", "the end of an instance")
    live = {row["id"] for row in all_of_it.server.instances("running", "draining")}
    assert "i0" not in live
    for name in ("llumnix_freeness", "llumnix_running", "llumnix_dispatches_total"):

        def labels(client: httpx.Client, name: str = name) -> set[str]:
            lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + "{")]
            return {line.split('instance_id="')[1].split('"')[0] for line in lines}

        wait_for(lambda: all(found == live for found in all_of_it.on_all(labels)), f"{name} of {live} alone")
    lines = all_of_it.clients[HERE].get("/metrics").text.splitlines()
    caches = {line for line in lines if line.startswith("vllm:cache_config_info{")}
    assert {re.search(r'num_gpu_blocks="(\w+)"', line)[1].isdecimal() for line in caches} == {True}  # type: ignore[index]
