"""What `llumnix serve` is told: the flags that it knows, which of them fit together, and what they say."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

from llumnix import vllm_words
from llumnix.command_line import Vocabulary, refuse_wrong_values
from llumnix.config import MOST_FRONT_ENDS, ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.config_file import tell_apart_with_file
from llumnix.config_flags import Parser, add_flags, build
from llumnix.errors import UsageError
from llumnix.paths import path_text
from llumnix.policy.catalogue import Policy, find_policy
from llumnix.policy.classes import Classes

DEFAULT_ENGINE = "llumnix.engine.vllm.boot"


@dataclasses.dataclass(frozen=True, slots=True)
class ServeArguments:
    """What `llumnix serve` was told. `engine_flags` are vLLM's, in the order given; nobody has checked them yet."""

    model: str | None
    engine_flags: tuple[str, ...]
    front_ends: int
    policy: PolicyConfig
    migration: MigrationConfig
    cluster: ClusterConfig
    scaling: ScalingConfig
    classes: Classes | None
    engine: str

    def engine_flag(self, *names: str) -> str | None:
        """Value of a flag of vLLM's, which may be spelled in any of these ways; the last one counts."""
        return flag_value(self.engine_flags, *names)


def serve_parser() -> Parser:
    parser = Parser(
        prog="llumnix serve",
        usage="llumnix serve [MODEL] [--instances N] [flags below] [any flag of `vllm serve`]",
        description="Serves MODEL on several vLLM engines behind one OpenAI-compatible address. Without MODEL: a tiny "
        "random model that is made on the spot, so that it runs on a laptop without a download.",
        epilog="All other flags are vLLM's: --help=all lists them, too, --help=ModelConfig a group of them, "
        "--help=max-model-len one. Flags of both can stand in a YAML file: --config FILE. "
        "Exit codes: 0 stopped by a signal, 1 failed while serving, 2 could not start.",
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="Show this text.")
    parser.add_argument(
        "--api-server-count", "-asc", dest="front_ends", type=int, default=1, metavar="N",
        help="Front end processes that share the address. Default: 1.",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="YAML file with flags of ours and of vLLM's.")
    parser.add_argument("--engine-module", dest="engine", default=DEFAULT_ENGINE, help=argparse.SUPPRESS)
    for config in (ClusterConfig, PolicyConfig, MigrationConfig, ScalingConfig):
        add_flags(parser, config)
    return parser


def parse_serve(arguments: Sequence[str]) -> ServeArguments:
    """Raises UsageError."""
    parser = serve_parser()
    known = vocabulary(parser, flag_value(arguments, "--engine-module") or DEFAULT_ENGINE)
    words = tell_apart_with_file(arguments, known)
    values = parser.parse_args(words.ours)
    model, engine_flags = _take_model(words.free, words.engine)
    _refuse_what_does_not_fit(engine_flags, known)
    if known.complete:
        refuse_wrong_values(engine_flags, known)
    if not 1 <= values.front_ends <= MOST_FRONT_ENDS:
        raise UsageError(f"--api-server-count must be between 1 and {MOST_FRONT_ENDS}, not {values.front_ends}.")
    if values.launcher == "ray":
        values.ray_address = values.ray_address or os.environ.get("RAY_ADDRESS", "")  # as Ray itself does
    cluster = build(ClusterConfig, values)
    given = _given(parser, words.ours)
    _refuse_without_what_they_are_for(given, cluster)
    without = "--scaling on or --scaling advise" if cluster.scaling == "off" else ""
    policy = find_policy(values.policy)
    refuse_what_does_nothing(given, policy, migration=values.migration, scales_with=without)
    _refuse_what_vllm_makes_idle(given, engine_flags)
    policy_config = build(PolicyConfig, values)
    policy_config.roles.check(cluster.instances)
    scaling = build(ScalingConfig, values)
    if cluster.scaling != "off" and not scaling.min_instances <= cluster.instances <= scaling.max_instances:
        raise UsageError(
            f"--instances ({cluster.instances}) must lie between --min-instances ({scaling.min_instances}) and "
            f"--max-instances ({scaling.max_instances})."
        )
    return ServeArguments(
        model=None if model is None else path_text(model),
        engine_flags=tuple(engine_flags),
        front_ends=values.front_ends,
        policy=policy_config,
        migration=build(MigrationConfig, values),
        cluster=cluster,
        scaling=scaling,
        classes=_classes(cluster.classes),
        engine=values.engine,
    )


def _classes(path: str) -> Classes | None:
    from llumnix.classes_file import read_classes

    return read_classes(path) if path else None


def vocabulary(parser: argparse.ArgumentParser, engine: str) -> Vocabulary:
    """The flags that can be given. Of another engine than vLLM we know none."""
    ours = {name: action.nargs != 0 for name, action in parser._option_string_actions.items()}
    if engine != DEFAULT_ENGINE:
        return Vocabulary(ours, {}, complete=False)
    return Vocabulary(ours, vllm_words.vllm_flags(), vllm_words.complete())


def _take_model(free: list[str], engine_flags: list[str]) -> tuple[str | None, list[str]]:
    """The model's name by itself, else by `--model`; and the flags without the latter."""
    if len(free) > 1:
        raise UsageError(f"{free[1]!r} is neither a flag nor a flag's value; the model is {free[0]} already.")
    by_flag = flag_value(engine_flags, "--model")
    if by_flag is None:
        return (free[0] if free else None), engine_flags
    rest: list[str] = []
    words = iter(engine_flags)
    for word in words:
        if word == "--model":
            next(words)
        elif not word.startswith("--model="):
            rest.append(word)
    return (free[0] if free else by_flag), rest


def _refuse_what_does_not_fit(engine_flags: Sequence[str], known: Vocabulary) -> None:
    """Flags of vLLM's that a cluster cannot honour, unless they say what vLLM does anyway. Raises UsageError."""
    for position, word in enumerate(engine_flags):
        name, equals, value = word.partition("=")
        flag = known.theirs.get(name.partition(".")[0])
        if flag is None or not flag.refused:
            continue
        value = value if equals or flag.takes in ("nothing", "switch") else engine_flags[position + 1]
        if value not in flag.fine:
            raise UsageError(flag.refused)


def _given(parser: argparse.ArgumentParser, ours: Sequence[str]) -> dict[str, str]:
    """The flags of ours that stand there, as they are spelled, by the names of their fields."""
    names = [name for word in ours if (name := word.partition("=")[0]) in parser._option_string_actions]
    return {parser._option_string_actions[name].dest: name for name in names}


def _refuse_without_what_they_are_for(given: Mapping[str, str], cluster: ClusterConfig) -> None:
    for field in ("ray_address", "cluster_address", "placement", "instance_cpus"):
        if field in given and cluster.launcher != "ray":
            raise UsageError(f"{given[field]} is for --launcher ray.")
    for field in ("record_mb", "record_keep_mb"):
        if field in given and not cluster.record:
            raise UsageError(f"{given[field]} is for --record.")


def _refuse_what_vllm_makes_idle(given: Mapping[str, str], engine_flags: Sequence[str]) -> None:
    """Flags of ours that do nothing beside these of vLLM's. Raises UsageError."""
    if given.get("displace") == "--displace" and flag_value(engine_flags, "--scheduling-policy") == "fcfs":
        raise UsageError(
            "--displace is for instances that know priorities, and with --scheduling-policy fcfs they do not."
        )
    whole = next((word for word in engine_flags if _canonical(word) in _WHOLE_PROMPTS), None)
    if "tpot_target_ms" in given and whole is not None:
        raise UsageError(
            f"--tpot-target-ms is for engines that compute prompts in parts, and with {whole} they do not."
        )
    key = has_flag(engine_flags, "--api-key") or os.environ.get("VLLM_API_KEY")
    if "admin_allowed_hosts" in given and key:
        raise UsageError(
            "--admin-allowed-hosts is for servers without an API key: with one, that is what the admin routes ask for."
        )


def refuse_what_does_nothing(given: Mapping[str, str], policy: Policy, *, migration: bool, scales_with: str) -> None:
    """Flags of ours that only count with others, which are not there; `given` are those that are, by their fields.
    `scales_with`: what would switch auto-scaling on; empty if it is on. Raises UsageError."""
    no_moves = "--no-migration" if not migration else "this --policy" if policy.pairing is None else ""
    idle = {
        f"is for auto-scaling, which is off: say {scales_with}": _SCALING if scales_with else (),
        f"is for requests that move by themselves, and with {no_moves} none does": _MOVING if no_moves else (),
        "is for policies that know roles, and this --policy does not": () if policy.roles else _ROLES,
        "is for policies that make room, and this --policy does not": () if policy.relief else ("relief_steps",),
        "is for policies that look at pace, and this --policy does not": () if policy.pace else ("pace_gain",),
        "is for policies that look at prefixes, and this --policy does not": (
            () if policy.dispatch.judge is not None else ("prefix", "prefix_chunk_tokens")
        ),
        "is for placing by prefixes, which --no-prefix switches off": (
            ("prefix_chunk_tokens",) if given.get("prefix") == "--no-prefix" else ()
        ),
        "is for policies that know priorities, and this --policy does not": (
            () if policy.priorities else ("priority_target_tokens",)
        ),
    }
    for why, fields in idle.items():
        for field in fields:
            if field in given:
                raise UsageError(f"{given[field]} {why}.")


_WHOLE_PROMPTS = ("--no-enable-chunked-prefill", "--disable-chunked-mm-input")
_SCALING = tuple(field.name for field in dataclasses.fields(ScalingConfig))
_ROLES = ("prefill_instances", "decode_instances", "roles")
_FREENESS = ("migrate_out_freeness", "migrate_in_freeness")
_MOVING = (*_FREENESS, "max_migrations_per_instance", "relief_steps", "pace_gain", *_ROLES)


def flag_value(flags: Sequence[str], *names: str) -> str | None:
    """Value of the last flag that is spelled in one of these ways (`--a-b 1`, `--a-b=1`, `--a_b 1`)."""
    found = None
    for position, word in enumerate(flags):
        name, equals, value = word.partition("=")
        if not name.startswith("-") or _canonical(name) not in names:
            continue
        if equals:
            found = value
        elif position + 1 < len(flags):
            found = flags[position + 1]
    return found


def flag_values(flags: Sequence[str], flag: str) -> Iterator[str]:
    """All of a flag that takes several, as command_line.py puts them."""
    follows = False
    for word in flags:
        name, _, value = word.partition("=")
        if word.startswith("--"):
            follows = _canonical(name) == flag
            if follows and value:
                yield value
        elif follows:
            yield word


def has_flag(flags: Sequence[str], *names: str) -> bool:
    """Whether the flag, or its `--no-` form, was given."""
    wanted = {*names, *("--no-" + name.removeprefix("--") for name in names)}
    return any(_canonical(word.partition("=")[0]) in wanted for word in flags if word.startswith("-"))


def _canonical(name: str) -> str:
    return name.replace("_", "-")
