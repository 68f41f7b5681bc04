"""Every place of vLLM that an instance relies on."""

from __future__ import annotations

from llumnix.engine.vllm.hook import Hook, of

_ALLOCATE_SLOTS = (
    "self request num_new_tokens num_new_computed_tokens new_computed_blocks num_lookahead_tokens"
    " num_external_computed_tokens delay_cache_blocks num_encoder_tokens full_sequence_must_fit reserved_blocks"
    " has_scheduled_reqs"
)

INSTANCE_HOOKS = (
    *of(
        "vllm.v1.engine.core:EngineCoreProc.",
        Hook(
            "__init__",
            "self vllm_config local_client handshake_address executor_class log_stats client_handshake_address"
            " tensor_queue engine_index",
            "the instance's engine",
        ),
        Hook(
            "_perform_handshakes",
            "self handshake_address identity local_client vllm_config client_handshake_address",
            "overridden: addresses are known",
        ),
        Hook("_handle_client_request", "self request_type request", "overridden: control messages"),
        Hook("_process_input_queue", "self", "overridden: last blocks of arrivals"),
        Hook("_process_engine_step", "self", "overridden: work between steps"),
        Hook("_notify_idle_state_callbacks", "self", "overridden: last report; the engine rests: what steps cost"),
        Hook("_handle_request_preproc_error", "self request", "overridden: ledger"),
        Hook(
            "_send_abort_outputs_to_client",
            "self req_ids client_index",
            "overridden: what an engine that ends turns away",
        ),
        Hook(
            "_reject_utility_in_shutdown",
            "self client_idx call_id method_name",
            "resumes that an engine that ends turns away (its words: streams.py)",
        ),
        Hook("_send_error_outputs_to_client", "self req_ids client_index", "requests whose adapter cannot be loaded"),
        Hook("pause_scheduler", "self mode clear_cache", "state of the server"),
        Hook("_pause_complete", "self", "overridden: while nothing is on the move"),
        Hook("_make_ready_response", "self", "first contact"),
        Hook("run_busy_loop", "self", "the instance's loop"),
    ),
    Hook(
        "vllm.v1.executor.abstract:Executor.collective_rpc",
        "self method timeout args kwargs non_block",
        "what workers are told and asked, in the order of the steps",
    ),
    *of(
        "vllm.v1.engine.core:EngineCore.",
        Hook("resume_scheduler", "self", "state of the server"),
        Hook("sleep", "self level mode", "state of the server"),
        Hook("wake_up", "self tags", "state of the server"),
        Hook("release_kv_cache_memory", "self", "state of the server"),
        Hook("profile", "self is_start", "state of the server"),
        Hook(
            "reset_prefix_cache",
            "self reset_running_requests reset_connector",
            "overridden: while nothing is on the move; state of the server",
        ),
        Hook("reset_mm_cache", "self", "state of the server"),
        Hook("reset_encoder_cache", "self", "state of the server"),
        Hook("add_lora", "self lora_request", "overridden: which adapters are there"),
        Hook("preprocess_add_request", "self request", "overridden: keeps the original"),
        Hook("add_request", "self request request_wave", "warm-up; the wave of a further chunk"),
        Hook("abort_requests", "self request_ids", "overridden: requests that are taken up; orphans"),
    ),
    *of(
        "vllm.v1.core.sched.scheduler:Scheduler.",
        Hook(
            "reset_prefix_cache",
            "self reset_running_requests reset_connector",
            "overridden: those that have just come, too",
        ),
        Hook(
            "schedule",
            "self throttle_prefills",
            "overridden: kept batch slots, steps in flight, last ones without drafts; reads `max_num_scheduled_tokens`,"
            " `long_prefill_token_threshold` and `adaptive_long_prefill_threshold` anew each time: tokens of prompts;"
            " and `max_num_active_reqs` and `KVCacheManager.watermark_blocks` for each request of the queue",
        ),
        Hook("update_from_output", "self scheduler_output model_runner_output", "overridden: steps in flight"),
        Hook(
            "_update_after_schedule",
            "self scheduler_output",
            "a planned step's tokens count as computed: what steps cost",
        ),
        Hook("_free_request_blocks", "self request", "overridden: blocks that a step in flight still uses"),
        Hook(
            "_preempt_request",
            "self request timestamp drop_stale_output",
            "overridden: counted; called: who makes way for a high-priority request",
        ),
        Hook("_request_blocks_can_be_freed", "self request", "who can make way"),
        Hook("_free_request", "self request delay_free_blocks", "overridden: ends are told"),
        Hook("finish_requests", "self request_ids finished_status", "release"),
        Hook("_holds_kv_blocks", "request", "which queue to go back to"),
        Hook(
            "_handle_blocked_waiting_request",
            "self request",
            "overridden: asked of each request that a step may begin with; kept places of adapters",
        ),
        Hook("_is_blocked_waiting_status", "status", "which queue to go back to"),
        Hook("_inflight_prefill_reserved_blocks", "self", "room for reservations"),
        Hook("add_request", "self request", "overridden: prefixes that come"),
    ),
    *of(
        "vllm.utils.torch_utils:",
        Hook("set_random_seed", "seed", "each instance draws by itself", until=(0, 32)),
        Hook("set_random_seed", "seed data_parallel_index", "each instance draws by itself", since=(0, 32)),
        Hook("startup_omp_num_threads", "num_local_procs", "cores of each instance while weights are loaded"),
        Hook("set_torch_threads_for_runtime", "", "takes them back, where OMP_NUM_THREADS is nobody's wish"),
    ),
    *of(
        "vllm.v1.core.sched.request_queue:RequestQueue.",
        Hook("peek_request", "self", "overridden: whom a step looks at"),
        Hook("add_request", "self request", "overridden: counted"),
        Hook("pop_request", "self", "overridden: counted"),
        Hook("prepend_request", "self request", "overridden: counted"),
        Hook("prepend_requests", "self requests", "overridden: counted"),
        Hook("remove_request", "self request", "overridden: counted"),
        Hook("remove_requests", "self requests", "overridden: counted"),
    ),
    Hook("vllm.v1.core.sched.request_queue:PriorityRequestQueue.__init__", "self", "replaced where priorities count"),
    *of(
        "vllm.v1.core.kv_cache_manager:KVCacheManager.",
        Hook("get_computed_blocks", "self request", "prefix hits"),
        Hook("allocate_slots", _ALLOCATE_SLOTS, "reservations", until=(0, 32)),
        Hook("allocate_slots", f"{_ALLOCATE_SLOTS} skip_zeroing_group_ids", "reservations", since=(0, 32)),
        Hook("free", "self request", "dropped reservations"),
        Hook("remove_skipped_blocks", "self request_id processed_computed_tokens num_prompt_tokens", "sliding windows"),
        Hook("cache_blocks", "self request num_computed_tokens", "prefixes of arrived requests"),
        Hook("get_blocks", "self request_id", "block tables"),
        Hook("get_block_ids", "self request_id", "block tables"),
    ),
    *of(
        "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.",
        Hook(
            "get_num_blocks_to_allocate",
            "self request_id num_tokens new_computed_blocks num_encoder_tokens total_computed_tokens"
            " num_local_computed_tokens num_tokens_main_model apply_admission_cap prefill_end",
            "what the first of the queue needs to start",
        ),
        Hook(
            "cache_blocks",
            "self request num_computed_tokens",
            "replaced on the object: nothing of requests that nobody has confirmed enters the prefix cache",
        ),
        Hook(
            "find_longest_cache_hit",
            "self block_hashes max_cache_hit_length",
            "how much of a request is cached where groups keep windows or states",
        ),
    ),
    Hook(
        "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager.get_num_skipped_tokens",
        "self num_computed_tokens",
        "blocks that windows have left behind",
    ),
    *of(
        "vllm.v1.request:Request.",
        Hook("get_num_encoder_embeds", "self input_id", "what the first of the queue needs to start"),
        Hook("update_block_hashes", "self", "which prefixes are cached: `block_hashes` of a prompt"),
        Hook(
            "get_skip_reading_prefix_cache",
            "self",
            "requests that do not begin with what is cached: `skip_reading_prefix_cache`, as front ends know it, too",
        ),
    ),
    Hook(
        "vllm.v1.core.single_type_kv_cache_manager:MambaManager.allocate_new_blocks",
        "self request_id num_tokens num_tokens_main_model",
        "block tables of states",
    ),
    *of(
        "vllm.v1.core.block_pool:BlockPool.",
        Hook("get_cached_block", "self block_hash kv_cache_group_ids", "which prefixes are cached"),
        Hook("touch", "self blocks", "pins"),
        Hook("free_blocks", "self ordered_blocks", "pins"),
    ),
    Hook("vllm.v1.structured_output:StructuredOutputManager.accept_tokens", "self request new_token_ids", "grammars"),
    Hook(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState.__init__",
        "self req_id prompt_token_ids mm_features sampling_params generator block_ids num_computed_tokens"
        " output_token_ids",
        "requests that arrive at the V1 runner",
    ),
    Hook(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._init_mrope_positions",
        "self req_state",
        "M-RoPE positions of requests that arrive at the V1 runner",
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
    Hook(
        "vllm.v1.worker.utils:AttentionGroup.get_metadata_builder",
        "self",
        "what writes the blocks: moves between engines that order them otherwise are refused",
    ),
    Hook(
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder._set_isa_to_layers",
        "self layer_names",
        "`isa`: in which order a kind of processors keeps K and V",
    ),
    Hook(
        "vllm.v1.sample.sampler:batched_count_greater_than",
        "x values",
        "replaced on CPUs by what it is before it is compiled: log probabilities",
    ),
    Hook(
        "vllm.v1.sample.ops.topk_topp_sampler:compiled_random_sample",
        "logits",
        "replaced on CPUs by what it is before it is compiled: 0.31 draws with it",
        until=(0, 33),
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
    Hook(
        "torch._inductor.runtime.cache_dir_utils:default_cache_dir",
        "",
        "a link: workers find the headers again that those of another instance have compiled",
    ),
    Hook("vllm.compilation.caching:aot_compile_hash_factors", "vllm_config", "wrapped: and are this processor's"),
)
