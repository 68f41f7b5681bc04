"""Every place of vLLM that the adapter relies on, with the shape that it relies on.

`problems()` compares them with the vLLM that is installed, so that another version fails with a list and not
with a mystery. Run at every start (a few milliseconds) and by a test.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

SUPPORTED = "0.32"


@dataclass(frozen=True, slots=True)
class Hook:
    where: str
    """module:qualified.name"""
    parameters: str
    """Leading parameter names, as called or overridden; other parameters must have defaults."""
    used_for: str
    by_name: tuple[str, ...] = ()
    """Further required parameters, always given by name."""


HOOKS = (
    Hook(
        "vllm.v1.engine.core:EngineCoreProc.__init__",
        "self vllm_config local_client handshake_address executor_class log_stats client_handshake_address tensor_queue"
        " engine_index",
        "the instance's engine",
    ),
    Hook(
        "vllm.v1.engine.core:EngineCoreProc._perform_handshakes",
        "self handshake_address identity local_client vllm_config client_handshake_address",
        "overridden: addresses are known",
    ),
    Hook(
        "vllm.v1.engine.core:EngineCoreProc._handle_client_request",
        "self request_type request",
        "overridden: control messages",
    ),
    Hook("vllm.v1.engine.core:EngineCoreProc._process_input_queue", "self", "overridden: last blocks of arrivals"),
    Hook("vllm.v1.engine.core:EngineCoreProc._process_engine_step", "self", "overridden: work between steps"),
    Hook("vllm.v1.engine.core:EngineCoreProc._notify_idle_state_callbacks", "self", "overridden: last report"),
    Hook("vllm.v1.engine.core:EngineCoreProc._handle_request_preproc_error", "self request", "overridden: ledger"),
    Hook(
        "vllm.v1.engine.core:EngineCoreProc._send_abort_outputs_to_client",
        "self req_ids client_index",
        "overridden: what an engine that ends turns away",
    ),
    Hook(
        "vllm.v1.engine.core:EngineCoreProc._reject_utility_in_shutdown",
        "self client_idx call_id method_name",
        "resumes that an engine that ends turns away (its words: streams.py)",
    ),
    Hook(
        "vllm.v1.engine.core:EngineCoreProc._send_error_outputs_to_client",
        "self req_ids client_index",
        "requests whose adapter cannot be loaded",
    ),
    Hook("vllm.v1.engine.core:EngineCoreProc.pause_scheduler", "self mode clear_cache", "state of the server"),
    Hook("vllm.v1.engine.core:EngineCore.resume_scheduler", "self", "state of the server"),
    Hook("vllm.v1.engine.core:EngineCore.sleep", "self level mode", "state of the server"),
    Hook("vllm.v1.engine.core:EngineCore.wake_up", "self tags", "state of the server"),
    Hook("vllm.v1.engine.core:EngineCore.release_kv_cache_memory", "self", "state of the server"),
    Hook("vllm.v1.engine.core:EngineCore.profile", "self is_start", "state of the server"),
    Hook("vllm.v1.engine.core:EngineCore.reset_prefix_cache", "self", "state of the server"),
    Hook("vllm.v1.engine.core:EngineCore.reset_mm_cache", "self", "state of the server"),
    Hook("vllm.v1.engine.core:EngineCore.reset_encoder_cache", "self", "state of the server"),
    Hook("vllm.v1.engine.core:EngineCore.add_lora", "self lora_request", "overridden: which adapters are there"),
    Hook("vllm.v1.engine.core:EngineCoreProc._make_ready_response", "self", "first contact"),
    Hook("vllm.v1.engine.core:EngineCoreProc.run_busy_loop", "self", "the instance's loop"),
    Hook("vllm.v1.engine.core:EngineCore.preprocess_add_request", "self request", "overridden: keeps the original"),
    Hook("vllm.v1.engine.core:EngineCore.add_request", "self request request_wave", "warm-up"),
    Hook(
        "vllm.v1.engine.core:EngineCore.abort_requests",
        "self request_ids",
        "overridden: requests that are taken up; orphans",
    ),
    Hook(
        "vllm.v1.core.sched.scheduler:Scheduler.schedule",
        "self throttle_prefills",
        "overridden: kept batch slots, steps in flight",
    ),
    Hook(
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        "self scheduler_output model_runner_output",
        "overridden: steps in flight",
    ),
    Hook(
        "vllm.v1.core.sched.scheduler:Scheduler._free_request_blocks",
        "self request",
        "overridden: blocks that a step in flight still uses",
    ),
    Hook("vllm.utils.torch_utils:set_random_seed", "seed data_parallel_index", "each instance draws by itself"),
    Hook(
        "vllm.v1.core.sched.scheduler:Scheduler._preempt_request",
        "self request timestamp drop_stale_output",
        "overridden: counted; called: who makes way for a high-priority request",
    ),
    Hook("vllm.v1.core.sched.scheduler:Scheduler._request_blocks_can_be_freed", "self request", "who can make way"),
    Hook("vllm.v1.core.sched.request_queue:RequestQueue.peek_request", "self", "who is first in the queue"),
    Hook("vllm.v1.core.sched.request_queue:RequestQueue.add_request", "self request", "overridden: counted"),
    Hook("vllm.v1.core.sched.request_queue:RequestQueue.pop_request", "self", "overridden: counted"),
    Hook("vllm.v1.core.sched.request_queue:RequestQueue.prepend_request", "self request", "overridden: counted"),
    Hook("vllm.v1.core.sched.request_queue:RequestQueue.prepend_requests", "self requests", "overridden: counted"),
    Hook("vllm.v1.core.sched.request_queue:RequestQueue.remove_request", "self request", "overridden: counted"),
    Hook("vllm.v1.core.sched.request_queue:RequestQueue.remove_requests", "self requests", "overridden: counted"),
    Hook("vllm.v1.core.sched.request_queue:PriorityRequestQueue.__init__", "self", "the front of its `_heap`"),
    Hook(
        "vllm.v1.core.sched.scheduler:Scheduler._free_request",
        "self request delay_free_blocks",
        "overridden: ends are told",
    ),
    Hook("vllm.v1.core.sched.scheduler:Scheduler.finish_requests", "self request_ids finished_status", "release"),
    Hook("vllm.v1.core.sched.scheduler:Scheduler._holds_kv_blocks", "request", "which queue to go back to"),
    Hook("vllm.v1.core.sched.scheduler:Scheduler._is_blocked_waiting_status", "status", "which queue to go back to"),
    Hook("vllm.v1.core.sched.scheduler:Scheduler._inflight_prefill_reserved_blocks", "self", "room for reservations"),
    Hook("vllm.v1.core.kv_cache_manager:KVCacheManager.get_computed_blocks", "self request", "prefix hits"),
    Hook(
        "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots",
        "self request num_new_tokens num_new_computed_tokens new_computed_blocks num_lookahead_tokens"
        " num_external_computed_tokens delay_cache_blocks num_encoder_tokens full_sequence_must_fit reserved_blocks"
        " has_scheduled_reqs skip_zeroing_group_ids",
        "reservations",
    ),
    Hook("vllm.v1.core.kv_cache_manager:KVCacheManager.free", "self request", "dropped reservations"),
    Hook(
        "vllm.v1.core.kv_cache_manager:KVCacheManager.remove_skipped_blocks",
        "self request_id processed_computed_tokens num_prompt_tokens",
        "sliding windows",
    ),
    Hook(
        "vllm.v1.core.kv_cache_manager:KVCacheManager.cache_blocks",
        "self request num_computed_tokens",
        "prefixes of arrived requests",
    ),
    Hook("vllm.v1.core.kv_cache_manager:KVCacheManager.get_blocks", "self request_id", "block tables"),
    Hook("vllm.v1.core.kv_cache_manager:KVCacheManager.get_block_ids", "self request_id", "block tables"),
    Hook("vllm.v1.core.block_pool:BlockPool.touch", "self blocks", "pins"),
    Hook("vllm.v1.core.block_pool:BlockPool.free_blocks", "self ordered_blocks", "pins"),
    Hook("vllm.v1.structured_output:StructuredOutputManager.accept_tokens", "self request new_token_ids", "grammars"),
    Hook(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState.__init__",
        "self req_id prompt_token_ids mm_features sampling_params generator block_ids num_computed_tokens"
        " output_token_ids",
        "requests that arrive at the V1 runner",
    ),
    Hook(
        "vllm.v1.worker.cpu_model_runner:CPUModelRunner.sample_tokens",
        "self grammar_output",
        "overridden: seeded requests in chunks",
    ),
    *(
        Hook(
            f"vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU.{method}",
            parameters,
            "overridden: requests without an adapter on CPUs",
        )
        for method, parameters in (
            ("add_expand", "self y x lora_b_stacked output_slices"),
            ("add_lora_embedding", "self y x lora_b_stacked"),
            ("add_lora_logits", "self y x lora_a_stacked lora_b_stacked scale"),
        )
    ),
    Hook("vllm.v1.engine.core_client:EngineCoreClient.make_async_mp_client", "", "replaced while AsyncLLM is made"),
    Hook("vllm.v1.engine.core_client:AsyncMPClient.add_request_async", "self request", "overridden: dispatch"),
    Hook("vllm.v1.engine.core_client:AsyncMPClient.abort_requests_async", "self request_ids", "overridden: owner"),
    Hook("vllm.v1.engine.core_client:AsyncMPClient._send_input", "self request_type request engine", "sending"),
    Hook(
        "vllm.v1.engine.core_client:AsyncMPClient._call_utility_async",
        "self method",
        "calls to one engine",
        ("args", "engine"),
    ),
    Hook(
        "vllm.v1.engine.core_client:_process_utility_output",
        "output utility_results",
        "answers to the calls of an earlier front end (client_setup.py)",
    ),
    Hook("vllm.v1.engine.core_client:AsyncMPClient.call_utility_async", "self method", "overridden: all engines"),
    Hook("vllm.v1.engine.core_client:MPClient._apply_ready_response", "self payload", "first contact"),
    Hook(
        "vllm.v1.engine.async_llm:AsyncLLM._add_request",
        "self request prompt parent_req index queue",
        "overridden: forgets what cannot be sent",
    ),
    Hook("vllm.v1.engine.output_processor:OutputProcessor.has_request", "self request_id", "what was known before"),
    Hook(
        "vllm.v1.engine.admission_control:SharedAdmissionStats.__init__",
        "self client_addresses client_count client_index",
        "unfinished requests of all front ends",
    ),
    Hook("vllm.v1.engine.async_llm:AsyncLLM.check_admission", "self n request_id", "overridden: 503"),
    Hook("vllm.v1.engine.async_llm:AsyncLLM.check_health", "self", "overridden: 503"),
    Hook("vllm.v1.engine.async_llm:AsyncLLM.abort", "self request_id internal", "overridden: at all front ends"),
    Hook(
        "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc",
        "self method timeout args kwargs",
        "overridden: weights stay",
    ),
    Hook(
        "vllm.v1.engine.async_llm:AsyncLLM.scale_elastic_ep",
        "self new_data_parallel_size drain_timeout",
        "overridden: refused",
    ),
    Hook(
        "vllm.entrypoints.openai.models.serving:OpenAIServingModels.load_lora_adapter",
        "self request base_model_name",
        "wrapped: adapters of all front ends (adapters.py)",
    ),
    Hook(
        "vllm.entrypoints.openai.models.serving:OpenAIServingModels.unload_lora_adapter",
        "self request",
        "wrapped: adapters of all front ends",
    ),
    Hook(
        "vllm.entrypoints.openai.models.serving:OpenAIServingModels.resolve_lora",
        "self lora_name",
        "wrapped: adapters of all front ends",
    ),
    Hook(
        "vllm.v1.engine.core:make_zmq_socket",
        "ctx path socket_type bind identity linger",
        "replaced in instances on other machines: keys",
    ),
    Hook(
        "vllm.compilation.decorators:_try_load_aot_compiled_fn",
        "model aot_compilation_path",
        "wrapped: compiled models are found again on CPUs",
    ),
    Hook(
        "torch._inductor.codecache:_precompile_header",
        "header hashable_cmd_line",
        "replaced while a compiled model is loaded: its kernels need no header",
    ),
    Hook("vllm.compilation.caching:aot_compile_hash_factors", "vllm_config", "wrapped: and are this processor's"),
    Hook("vllm.v1.serial_utils:MsgpackEncoder.encode", "self obj", "requests on their way"),
    Hook(
        "vllm.entrypoints.generate.base.serving:GenerateBaseServing._get_priority",
        "request raw_request",
        "wrapped: service_tier",
    ),
    Hook(
        "vllm.entrypoints.generate.base.serving:GenerateBaseServing._raise_if_error",
        "self finish_reason request_id",
        "wrapped: reasons of failures",
    ),
    Hook("vllm.v1.metrics.prometheus:get_prometheus_registry", "", "metrics: ours are shown beside vLLM's"),
    Hook("vllm.entrypoints.launchers.app:build_app", "args supported_tasks model_config", "the server"),
    Hook(
        "vllm.entrypoints.launchers.api_server.app_state:init_app_state",
        "engine_client state args supported_tasks",
        "the server",
    ),
    Hook("vllm.entrypoints.launchers.launcher:serve_http", "app sock enable_ssl_refresh", "the server"),
    Hook("vllm.entrypoints.launchers.launcher:setup_server", "args reuse_port", "the port"),
    Hook("vllm.entrypoints.launchers.cli_args:make_arg_parser", "parser", "flags"),
)

CLIENT_FIELDS = frozenset(
    (
        *("vllm_config", "_renderer", "_effective_attention_block_sizes", "_kv_event_sources", "ctx", "resources"),
        *("_finalizer", "engines_running", "stats_update_address", "input_socket", "encoder", "decoder"),
        *("engine_ranks_managed", "core_engines", "core_engine", "utility_results", "client_count", "client_index"),
        *("outputs_queue", "_engine_status"),
    )
)
"""Fields that the constructors of vLLM's client set, and client_setup.py sets instead."""


def problems() -> list[str]:
    """What is not as relied on: one sentence each, empty if all is well."""
    import vllm

    found: list[str] = []
    version = getattr(vllm, "__version__", "unknown")
    if not version.startswith(f"{SUPPORTED}."):
        found.append(f"its version is {version}, and the adapter is for {SUPPORTED}")
    found += [problem for hook in HOOKS if (problem := _problem(hook))]
    return found + _client_field_problems()


def _problem(hook: Hook) -> str:
    try:
        target = _find(hook.where)
        parameters = list(inspect.signature(target).parameters.values())
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        return f"{hook.where} is missing ({error}); needed for: {hook.used_for}"
    wanted = hook.parameters.split()
    names = [parameter.name for parameter in parameters]
    rest = parameters[len(wanted) :]
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in rest if p.default is inspect.Parameter.empty and p.kind not in fixed]
    required = [name for name in required if name not in hook.by_name]
    if hook.parameters and (names[: len(wanted)] != wanted or required):
        return f"{hook.where} takes ({', '.join(names)}), not ({', '.join(wanted)}); needed for: {hook.used_for}"
    return ""


def _find(where: str) -> Any:
    module, _, name = where.partition(":")
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return target


def _client_field_problems() -> list[str]:
    """Compares what the constructors of vLLM's client assign to `self` with what we assign."""
    from vllm.v1.engine.core_client import AsyncMPClient, MPClient

    theirs: set[str] = set()
    for owner in (MPClient, AsyncMPClient):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(owner.__init__)))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                theirs.add(node.attr)
    if theirs == CLIENT_FIELDS:
        return []
    new, gone = sorted(theirs - CLIENT_FIELDS), sorted(CLIENT_FIELDS - theirs)
    return [f"the fields of its engine client changed: new {new}, gone {gone}"]


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
