"""vLLM's own metrics while instances join, become more, fall asleep and die."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import msgspec
from prometheus_client import REGISTRY, Counter
from vllm.config import KVEventsConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.parser.metrics import init_parser_metrics
from vllm.v1.engine import EngineCoreReadyResponse
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from llumnix import tiny_model
from llumnix.control.server_state import Op, ServerState, after
from llumnix.engine.vllm.between import Introduction
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.llm import LlumnixLLM
from llumnix.engine.vllm.front_end.slot_metrics import SlotMetrics
from llumnix.engine.vllm.instance.core import LlumnixEngineCore
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId


class Plugin(AggregateStatLoggerBase):
    """A logger of the operator's own, with metrics of its own."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        self.counter = Counter("plugin_steps", "Steps.", ["engine"])
        for index in engine_indexes:
            self.counter.labels(str(index))

    def record(self, *_: Any, **__: Any) -> None: ...
    def log_engine_initialized(self) -> None: ...


@pytest.fixture
def config() -> Any:
    return EngineArgs(model=str(tiny_model.ensure()), enforce_eager=True).create_engine_config()


@pytest.fixture
def metrics(config: Any) -> Iterator[SlotMetrics]:
    """As a front end makes them for two instances, before any is there."""
    init_parser_metrics(model_name="tiny")
    made = SlotMetrics(
        vllm_config=config,
        engine_idxs=[0, 1],
        custom_stat_loggers=[Plugin],
        enable_default_loggers=False,
        client_count=1,
        aggregate_engine_logging=False,
    )
    yield made
    for collector in made._made:
        REGISTRY.unregister(collector)


def names() -> set[str]:
    return {family.name for family in REGISTRY.collect()}


def samples(name: str, **labels: str) -> list[dict[str, str]]:
    found = [sample for family in REGISTRY.collect() for sample in family.samples if sample.name == name]
    return [sample.labels for sample in found if labels.items() <= sample.labels.items()]


def ready(blocks: int, rank: int = 0, **fields: Any) -> EngineCoreReadyResponse:
    """Only the blocks, the rank and what is in `fields` matter."""
    needed = [each.name for each in dataclasses.fields(EngineCoreReadyResponse) if each.default is dataclasses.MISSING]
    usual: dict[str, Any] = dict.fromkeys(needed, 1)
    usual |= {"dp_stats_address": None, "dtype": "", "vllm_version": "", "instance_id": "", "supports_lora": False}
    return EngineCoreReadyResponse(**usual | {"num_gpu_blocks": blocks, "data_parallel_rank": rank} | fields)


def client_of(config: Any) -> LlumnixClient:
    """As far as it is told what instances are like."""
    client = LlumnixClient.__new__(LlumnixClient)
    client.vllm_config, client._effective_attention_block_sizes, client._kv_event_sources = config, set(), {}
    return client


def join(client: LlumnixClient, said: EngineCoreReadyResponse) -> None:
    client._apply_ready_response(msgspec.msgpack.encode(said))


def test_what_a_cache_has_is_told_when_an_instance_is_there(metrics: SlotMetrics, config: Any) -> None:
    metrics.log_engine_initialized()
    assert samples("vllm:cache_config_info") == []
    join(client_of(config), ready(blocks=100))
    metrics.log_engine_initialized()
    assert [each["num_gpu_blocks"] for each in samples("vllm:cache_config_info")] == ["100", "100"]


def test_restarts_do_not_make_caches_larger(config: Any) -> None:
    client = client_of(config)
    for _ in range(5):
        join(client, ready(blocks=100))
    assert config.cache_config.num_gpu_blocks == 100


def test_an_instance_more_leaves_every_metric_where_it_was(metrics: SlotMetrics, config: Any) -> None:
    join(client_of(config), ready(blocks=100))
    metrics.log_engine_initialized()
    before = names()
    assert {"vllm:tool_call_parser_invocations", "vllm:cache_config_info", "plugin_steps"} <= before
    metrics.grow(3)
    assert names() == before
    third = {name for name in before for each in samples(name) + samples(f"{name}_total") if each.get("engine") == "2"}
    assert {"vllm:num_requests_running", "vllm:cache_config_info", "plugin_steps"} <= third
    assert [type(logger) for logger in metrics.stat_loggers].count(Plugin) == 1, "and no logger that nobody wanted"
    assert len(metrics.stat_loggers) == 2
    metrics.grow(4)
    assert names() == before


def test_an_instance_more_may_be_heard_of_before_the_first_has_joined(metrics: SlotMetrics, config: Any) -> None:
    """As at a front end that starts again when there are many."""
    join(client_of(config), ready(blocks=100))
    metrics.grow(3)
    metrics.log_engine_initialized()
    assert len(samples("vllm:cache_config_info")) == 3


def test_events_of_a_cache_are_told_by_the_slot_that_they_carry(config: Any) -> None:
    core: Any = LlumnixEngineCore.__new__(LlumnixEngineCore)
    core._make_ready_response = lambda: ready(blocks=1, rank=7, kv_events_config=KVEventsConfig())
    core._spec, core._seeds_lost = SimpleNamespace(slot=1), ""
    load = InstanceSnapshot(id=InstanceId("i7"), seq=1, at=0.0, total_blocks=1, free_blocks=1)
    core._office = SimpleNamespace(reports=SimpleNamespace(introduce=lambda: load))
    hello = msgspec.msgpack.decode(core.llumnix_hello(), type=Introduction)
    client = client_of(config)
    client._apply_ready_response(hello.ready)
    assert list(client.get_kv_event_sources()) == [1]


def told(state: str) -> list[float | None]:
    labels = [each for each in samples("vllm:engine_sleep_state") if each["sleep_state"] == state]
    return [REGISTRY.get_sample_value("vllm:engine_sleep_state", each) for each in labels]


def test_sleeping_server_is_told_asleep_when_instances_become_more(metrics: SlotMetrics) -> None:
    assert told("awake") == [1, 1]
    metrics.record_sleep_state(1, 1)
    metrics.grow(3)
    assert told("awake") == [0, 0, 0]


@pytest.mark.parametrize(("level", "what"), [(1, "weights_offloaded"), (2, "discard_all")])
def test_front_end_that_starts_while_the_server_sleeps_says_so(metrics: SlotMetrics, level: int, what: str) -> None:
    llm: Any = SimpleNamespace(logger_manager=metrics, profiler=None, _profile_session_active=False)
    asleep = after(after(ServerState(), Op("sleep", (level, "abort"))), Op("reset_encoder_cache"))
    LlumnixLLM.follow(llm, asleep)
    assert (told("awake"), told(what)) == ([0, 0], [1, 1])
    LlumnixLLM.follow(llm, after(asleep, Op("wake_up", (None,))))
    assert (told("awake"), told(what)) == ([1, 1], [0, 0])
