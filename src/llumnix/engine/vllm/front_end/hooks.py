"""Every place of vLLM that a front end relies on."""

from __future__ import annotations

from llumnix.engine.vllm.hook import Hook, VllmRelease, of

FRONT_END_HOOKS = (
    Hook("vllm.v1.engine.core_client:EngineCoreClient.make_async_mp_client", "", "replaced while AsyncLLM is made"),
    Hook("vllm.renderers.base:processor_cache_from_config", "vllm_config", "replaced while AsyncLLM is made"),
    Hook(
        "vllm.multimodal.cache.factories:processor_only_cache_from_config",
        "vllm_config",
        "processed images, kept by front ends alone",
    ),
    *of(
        "vllm.v1.engine.core_client:AsyncMPClient.",
        Hook("add_request_async", "self request", "overridden: dispatch"),
        Hook("abort_requests_async", "self request_ids", "overridden: owner"),
        Hook("_send_input", "self request_type request engine", "sending"),
        Hook("_call_utility_async", "self method", "calls to one engine", ("args", "engine")),
        Hook("call_utility_async", "self method", "overridden: all engines"),
        Hook("pause_generation_async", "self mode clear_cache", "overridden: state of the server", since=(0, 33)),
        Hook("get_output_async", "self", "overridden: given up"),
    ),
    Hook(
        "vllm.v1.engine.core_client:_process_utility_output",
        "output utility_results",
        "answers to the calls of an earlier front end (client_setup.py)",
    ),
    Hook(
        "vllm.v1.engine.core_client:MPClient._apply_ready_response",
        "self payload",
        "first contact; overridden: caches are not added up",
    ),
    Hook("vllm.v1.engine.async_llm:StatLoggerManager", "", "replaced while AsyncLLM is made: slot_metrics.py"),
    *of(
        "vllm.v1.metrics.loggers:StatLoggerManager.",
        Hook("record_sleep_state", "self sleep level", "overridden: it stays"),
        Hook("log_engine_initialized", "self", "overridden: when an instance has joined"),
    ),
    *of(
        "vllm.v1.engine.async_llm:AsyncLLM.",
        Hook("_add_request", "self request prompt parent_req index queue", "overridden: forgets what cannot be sent"),
        Hook("check_admission", "self n request_id", "overridden: 503"),
        Hook("check_health", "self", "overridden: 503"),
        Hook("abort", "self request_id internal", "overridden: at all front ends"),
        Hook("collective_rpc", "self method timeout args kwargs", "overridden: weights stay"),
        Hook("scale_elastic_ep", "self new_data_parallel_size drain_timeout", "overridden: refused"),
    ),
    *of(
        "vllm.v1.engine.output_processor:OutputProcessor.",
        Hook("has_request", "self request_id", "what vLLM waits for"),
        Hook("abort_requests", "self request_ids internal", "requests that are given up (given_up.py)"),
        Hook(
            "do_tracing",
            "self engine_core_output req_state iteration_stats",
            "a span below the one that the request's headers name (tracing.py)",
        ),
    ),
    *of(
        "vllm.v1.engine.output_processor:RequestOutputCollector.",
        Hook("put", "self output", "their error"),
        Hook("close", "self", "their input"),
    ),
    Hook(
        "vllm.v1.engine.admission_control:SharedAdmissionStats.__init__",
        "self client_addresses client_count client_index",
        "unfinished requests of all front ends",
    ),
    *of(
        "vllm.entrypoints.openai.models.serving:OpenAIServingModels.",
        Hook("init_static_loras", "self", "left out by a front end that starts later: adapters of all front ends"),
        Hook("load_lora_adapter", "self request base_model_name", "wrapped: adapters of all front ends (adapters.py)"),
        Hook("unload_lora_adapter", "self request", "wrapped: adapters of all front ends"),
        Hook("resolve_lora", "self lora_name", "wrapped: adapters of all front ends"),
    ),
    Hook(
        "vllm.v1.request:Request.take_events", "self", "when an engine took a request up, in its outputs (telling.py)"
    ),
    Hook("vllm.v1.serial_utils:MsgpackEncoder.encode", "self obj", "requests on their way"),
    *of(
        "vllm.entrypoints.generate.base.serving:GenerateBaseServing.",
        Hook("_get_priority", "request raw_request", "wrapped: service_tier"),
        Hook("_convert_generation_error_to_streaming_response", "self e", "replaced for responses: their errors"),
    ),
    Hook(
        "vllm.entrypoints.anthropic.serving:AnthropicServingMessages.message_stream_converter",
        "self generator",
        "wrapped: errors (stream_errors.py)",
    ),
    *of(
        "vllm.entrypoints.anthropic.api_router:",
        Hook("create_messages", "", "what the logger of this module tells of refusals (others_logs.py)"),
        Hook("count_tokens", "", "what the logger of this module tells of refusals"),
    ),
    *of(
        "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses.",
        Hook("responses_stream_generator", "", "wrapped: errors"),
        Hook("responses_background_stream_generator", "", "wrapped: errors"),
        Hook("_run_background_request", "", "wrapped: errors"),
    ),
    Hook("vllm.v1.metrics.prometheus:get_prometheus_registry", "", "metrics: ours are shown beside vLLM's"),
    Hook("vllm.entrypoints.launchers.app:build_app", "args supported_tasks model_config", "the server"),
    Hook(
        "vllm.entrypoints.launchers.api_server.app_state:init_app_state",
        "engine_client state args supported_tasks",
        "the server",
    ),
    *of(
        "vllm.entrypoints.launchers.launcher:",
        Hook("serve_http", "app sock enable_ssl_refresh", "the server", until=(0, 32)),
        Hook("serve_http", "app sock enable_ssl_refresh peer_loads", "the server", since=(0, 32)),
        Hook("setup_server", "args reuse_port", "the port"),
    ),
    *of(
        "vllm.entrypoints.launchers.cli_args:",
        Hook("make_arg_parser", "parser", "flags", until=(0, 33)),
        Hook("validate_parsed_serve_args", "args", "flags", until=(0, 33)),
    ),
    *of(
        "vllm.entrypoints.common.cli_args:",
        Hook("make_arg_parser", "parser", "flags", since=(0, 33)),
        Hook("validate_parsed_serve_args", "args", "flags", since=(0, 33)),
    ),
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

ADDED_CLIENT_FIELDS = {
    (0, 33): frozenset(
        ("input_address", "output_address", "coordinator_input_address", "coordinator_output_address"),
    )
}
"""Those that a later version added. They are set for all."""


def client_fields(release: VllmRelease) -> frozenset[str]:
    return CLIENT_FIELDS.union(*(added for since, added in ADDED_CLIENT_FIELDS.items() if since <= release))
