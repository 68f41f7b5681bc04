"""vLLM as an engine of ours: what the nursery calls before and after it forks (engine/port.py)."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
from dataclasses import dataclass
from typing import Any, NoReturn

from llumnix.config import MOST_FRONT_ENDS
from llumnix.engine import gpus
from llumnix.engine.port import FrontEndSpec, InstanceSpec
from llumnix.engine.vllm.front_end.origin import listening_host
from llumnix.engine.vllm.http_socket import bind
from llumnix.engine.vllm.shared_numbers import NOT_ACCEPTING, shared_numbers
from llumnix.engine.vllm.whole_prompts import make_room
from llumnix.errors import UsageError
from llumnix.vllm_words import ADVICE

_FRAME = re.compile(r"\d+ validation errors? for|For further information")  # of what pydantic says
_PARAMETER = re.compile(r" \(parameter=[^)]*\)$")  # of what vLLM says of a value
_SHORTEST_SENTENCE = 40  # characters; a full stop before that is likelier one of an abbreviation


@dataclass(frozen=True, slots=True)
class VllmSetup:
    args: argparse.Namespace
    """All flags of `vllm serve`."""
    config: Any
    """The VllmConfig that every instance and front end inherits by fork."""
    connections: memoryview
    """Open connections per front end, in memory that forks share: vLLM's server lets the least loaded one accept.
    `NOT_ACCEPTING` of one that does not serve."""
    admitted: memoryview
    """Unfinished requests per front end, likewise, in the slots that vLLM's `SharedAdmissionStats` has: what
    `--max-num-queued-reqs` counts."""

    @property
    def host(self) -> str:
        return listening_host(self.args)

    @property
    def port(self) -> int:
        port: int = self.args.port
        return port

    @property
    def example(self) -> tuple[str, dict[str, str | int]] | None:
        if self.config.model_config.runner_type != "generate":
            return "/pooling", {"input": "Hello"}
        return "/v1/completions", {"prompt": "Hello", "max_tokens": 16}


def prepare(argv: list[str], model: str) -> VllmSetup:
    """Raises UsageError with one sentence when vLLM is missing or does not like its flags or the model."""
    _require_vllm()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.exceptions import VLLMValidationError
    from vllm.logger import configure_logging_from_args
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.admission_control import SharedAdmissionStats

    from llumnix.engine.vllm.apart import refuse_to_fork_cuda, share_cached_weights
    from llumnix.engine.vllm.versions import command_line

    parser = command_line().make_arg_parser(FlexibleArgumentParser(prog="llumnix serve", add_help=False))
    parser.error = _refuse
    args = parser.parse_args([model, *argv])
    args.model = args.model_tag
    args.enable_flash_late_interaction = False  # documents find their query on the engine that has encoded it alone
    try:
        configure_logging_from_args(args)
        command_line().validate_parsed_serve_args(args)
        _import_plugins(args)
        engine_args = AsyncEngineArgs.from_cli_args(args)
        engine_args.worker_extension_cls = "llumnix.engine.vllm.instance.worker.WorkerExtension"
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except (ValueError, TypeError, OSError, RuntimeError, VLLMValidationError) as error:
        raise UsageError(_first_sentence(error)) from error
    _adjust(config, args)
    share_cached_weights(config)
    make_room(config, args.max_num_scheduled_tokens)
    _import_ahead(config)
    refuse_to_fork_cuda()
    admitted = SharedAdmissionStats.num_counters(MOST_FRONT_ENDS)
    return VllmSetup(args, config, shared_numbers(MOST_FRONT_ENDS, NOT_ACCEPTING), shared_numbers(admitted))


def _import_plugins(args: Any) -> None:
    """What they register is asked for when the configuration is made; vLLM does it where it opens its port, before."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    reasoning = args.reasoning_parser or args.structured_outputs_config.reasoning_parser
    check_parser("--reasoning-parser", reasoning, ReasoningParserManager.list_registered())
    if args.enable_auto_tool_choice:
        check_parser("--tool-call-parser", args.tool_call_parser, ToolParserManager.list_registered())


def check_parser(flag: str, name: str | None, known: list[str]) -> None:
    """vLLM raises a KeyError, and only where it opens its port. Raises UsageError."""
    if name and name not in known:
        raise UsageError(f"{flag} {name} is unknown, and no plugin registers it: it may be {', '.join(sorted(known))}.")


def listen(setup: VllmSetup) -> socket.socket:
    """The HTTP socket. Raises UsageError."""
    return bind(setup.args, setup.host)


def run_instance(setup: VllmSetup, spec: InstanceSpec) -> None:
    """Blocks until SIGTERM, or until the engine fails (the exception ends the process)."""
    import torch

    from llumnix.engine.vllm.apart import count_front_ends, set_apart, share_compiled_headers, share_cores
    from llumnix.engine.vllm.instance.serve import serve_instance

    count_front_ends(setup.config, spec.book.front_ends)
    set_apart(setup.config, spec)
    share_compiled_headers()
    _give_devices(setup.config, spec)
    multimodal = setup.config.model_config.multimodal_config
    if multimodal is not None:
        multimodal.mm_processor_cache_gb = 0  # what front ends send is whole (front_end/llm.py)
    if setup.config.device_config.device_type == "cpu":
        torch.set_num_threads(threads_of(os.environ.get("OMP_NUM_THREADS", "")))
    else:
        share_cores(spec.cluster.instances * setup.config.parallel_config.world_size)
    serve_instance(setup.config, spec, log_stats=not setup.args.disable_log_stats)


def threads_of(words: str) -> int:
    """What OMP_NUM_THREADS says: of a list, which is of nested levels, the first; 1 if it says nothing."""
    first = words.partition(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else 1


def run_front_end(setup: VllmSetup, spec: FrontEndSpec, sock: socket.socket) -> None:
    import uvloop
    from vllm.envs import enable_envs_cache
    from vllm.v1.engine.admission_control import SharedAdmissionStats

    from llumnix.engine.vllm.apart import count_front_ends
    from llumnix.engine.vllm.front_end.counts_on_disk import count_into_files_with_room
    from llumnix.engine.vllm.front_end.room import is_scarce
    from llumnix.engine.vllm.front_end.serve import serve_front_end

    count_front_ends(setup.config, spec.book.front_ends)
    enable_envs_cache()  # vLLM's statistics ask for environment variables per request and step
    count = spec.book.front_ends
    if count > 1:
        count_into_files_with_room()
    # What a front end that died here before has left.
    setup.connections[spec.index] = NOT_ACCEPTING
    setup.admitted[spec.index * SharedAdmissionStats.COUNTERS_PER_SLOT] = 0
    connections = setup.connections[:count] if count > 1 or is_scarce() else None
    admitted = setup.admitted if count > 1 else None
    uvloop.run(serve_front_end(setup.args, setup.config, spec, sock, connections, admitted))


def _require_vllm() -> None:
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"vLLM cannot be imported ({error}): run `make env` for CPUs, or {ADVICE} for GPUs."
        ) from error
    from vllm.platforms import current_platform

    if not current_platform.device_type:
        raise UsageError(
            "vLLM's build for GPUs finds none on this machine: `llumnix doctor` says what is missing. It must see one "
            "also where instances run on other machines, but needs none of its own there."
        )
    from llumnix.engine.vllm.hooks import problems

    if found := problems():
        raise UsageError(f"This vLLM is not one that Llumnix fits: {'; '.join(found)}.")


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"{message[:1].upper()}{message[1:]}.")


def _first_sentence(error: Exception) -> str:
    """The gist of what vLLM (often through pydantic) has to say, in one line."""
    said = _PARAMETER.sub("", str(error))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if not _FRAME.match(line)] or [type(error).__name__]
    named = len(telling) > 1 and len(telling[0].split()) == 1  # pydantic: the field, then what is wrong with it
    text = telling[named].removeprefix("Value error, ").split(" [type=")[0]
    if named and text.startswith("Input "):
        text = f"{telling[0].partition('.')[0]}: i{text[1:]}"
    end = text.find(". ", _SHORTEST_SENTENCE)
    text = text if end < 0 else text[: end + 1]
    return text if text.endswith(".") else f"{text}."


def _adjust(config: Any, args: argparse.Namespace) -> None:
    """What differs from a plain `vllm serve`: the scheduler class, and our middleware."""
    scheduling = config.scheduler_config
    if args.async_scheduling:
        # The CPU platform switches it off in the config; it works there, too.
        scheduling.async_scheduling = True
    if scheduling.scheduler_cls is not None:
        raise UsageError(f"Llumnix cannot serve this model: vLLM schedules it with {scheduling.scheduler_cls}.")
    kind = "LlumnixAsyncScheduler" if scheduling.async_scheduling else "LlumnixScheduler"
    scheduling.scheduler_cls = f"llumnix.engine.vllm.instance.scheduler.{kind}"
    # vLLM's own flag for ASGI middleware: the app cannot be given one once it is built.
    # Each further one is outside the ones before it.
    ours = "llumnix.engine.vllm.front_end"
    args.middleware = [*args.middleware, f"{ours}.room.Room", f"{ours}.retry_after.RetryAfter"]


def _import_ahead(config: Any) -> None:
    """Imports what every child needs, so that it is shared by fork. No thread may start here."""
    import vllm.entrypoints.launchers.api_server.app_state
    import vllm.entrypoints.launchers.app
    import vllm.v1.executor.uniproc_executor

    import llumnix.engine.vllm.front_end.serve
    import llumnix.engine.vllm.instance.serve

    if config.device_config.device_type == "cpu":
        import vllm.v1.worker.cpu_worker  # noqa: F401
        from vllm.config import CompilationMode
        from vllm.model_executor.models import ModelRegistry

        import llumnix.engine.vllm.instance.kv_pool  # noqa: F401
        from llumnix.engine.vllm import compiled_models

        if config.compilation_config.mode is not CompilationMode.NONE:
            compiled_models.import_ahead()

        with contextlib.suppress(ValueError):  # an unknown architecture is reported by the instance
            ModelRegistry.resolve_model_cls(config.model_config.architectures, config.model_config)


def _give_devices(config: Any, spec: InstanceSpec) -> None:
    """Each instance gets its own GPUs of those that are visible, or a few share some; on CPU all share the cores."""
    if config.device_config.device_type != "cuda":
        return
    each = config.parallel_config.world_size
    devices = gpus.visible(os.environ, gpus.installed())
    if devices is None:
        devices = [str(index) for index in range(_count_visible())]
    place = spec.device_slot // spec.cluster.instances_per_gpu
    mine = devices[place * each : (place + 1) * each]
    if len(mine) < each:
        raise UsageError(f"Instance slot {spec.slot} needs {each} GPUs, but only {len(devices)} are visible.")
    os.environ[gpus.VISIBLE] = ",".join(mine)


def _count_visible() -> int:
    from vllm.platforms import current_platform

    count: int = current_platform.device_count()
    return count
