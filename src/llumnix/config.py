"""Every knob of Llumnix, once. Frozen dataclasses that check themselves and say what is wrong in a sentence.

The command line flags and `docs/use/configuration.md` are made from the fields: `help` is the sentence,
the name with dashes is the flag.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llumnix.errors import UsageError
from llumnix.knob import check_knobs, knob
from llumnix.roles_config import RolesConfig

LARGEST_START = 64
"""Instances that are started by one request, at most."""

MOST_FRONT_ENDS = 64


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UsageError(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Scheduling policy: dispatch, pairing, priorities (paper sections 4.3 and 4.4). Freeness is in
    blocks per request: 1 means that every running request can produce one more block of tokens."""

    policy: str = knob("llumnix", "Scheduling policy: how requests are placed, and whether they are moved.")
    migration: bool = knob(True, "Move running requests between instances when that helps.")
    migrate_out_freeness: float | None = knob(
        None, "An instance whose freeness is below this gives requests away (default: 3)."
    )
    migrate_in_freeness: float | None = knob(
        None, "An instance whose freeness is above this takes requests (default: 3, or --migrate-out-freeness if more)."
    )
    pairing_interval_s: float = knob(0.1, "Seconds between two pairing rounds.")
    request_cooldown_s: float = knob(1.0, "Seconds a request stays after a move before it may move again.", ">= 0")
    max_migrations_per_instance: int = knob(
        1, "Migrations in flight per instance and direction that pairing starts.", ">= 1"
    )
    relief_steps: int = knob(
        16,
        "An instance whose batch would run out of blocks within this many steps has a request moved away at once, "
        "before one is preempted (0: off).",
        ">= 0",
    )
    pace_gain: float = knob(1.5, "Running requests move to where tokens come so many times faster (0: they stay).")
    displace: bool = knob(
        True, "Preempt normal requests for a high-priority one that would have to wait for memory on its instance."
    )
    prefix: bool = knob(
        True, "Place requests where the beginning of their prompts is cached already, if that is sooner."
    )
    prefix_chunk_tokens: int = knob(
        0,
        "Tokens by which the beginnings of prompts are told apart, in whole blocks (0: 512, and 4 blocks where prompts "
        "cannot be long).",
        ">= 0",
    )
    priority_target_tokens: int = knob(
        1600,
        "With a high-priority request present, an instance counts as if it had room for only this many tokens.",
        ">= 0",
    )
    roles: RolesConfig = field(default_factory=RolesConfig)

    def __post_init__(self) -> None:
        check_knobs(self)
        if self.migrate_in_freeness is not None and self.migrate_out_freeness is not None:
            _require(
                self.migrate_in_freeness >= self.migrate_out_freeness,
                f"--migrate-in-freeness ({self.migrate_in_freeness:g}) must not be below "
                f"--migrate-out-freeness ({self.migrate_out_freeness:g}), or requests would bounce.",
            )
        _require(self.pairing_interval_s >= 0.001, "--pairing-interval-s must be at least 0.001: one round costs ms.")
        _require(self.pace_gain == 0 or self.pace_gain >= 1.1, "--pace-gain must be 0 or at least 1.1.")


WAYS = ("same-gpu", "cuda", "nixl", "host")
"""By which blocks can move beside sockets; the last says that they do not."""
NIXL_VERSION = "1.5.1"
"""Of nixl-cu13, the package; pinned, since one private name of it is relied on (transport/nixl.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationConfig:
    """Live migration (paper section 4.2): when copying ends and how long anybody waits."""

    max_stages: int = knob(8, "Copy rounds before the hand-over is forced.", ">= 1")
    last_stage_max_blocks: int = knob(2, "Hand over when at most this many settled blocks are left to copy.", ">= 0")
    prepare_timeout_s: float = knob(5.0, "Seconds the target has to answer a request for room.", "> 0")
    stage_timeout_s: float = knob(30.0, "Seconds one copy round may take.", "> 0")
    detach_timeout_s: float = knob(10.0, "Seconds the source's engine has to take a request out of its batch.", "> 0")
    commit_timeout_s: float = knob(
        2.0, "Seconds the target has to confirm a hand-over; then the front end decides.", "> 0"
    )
    verdict_timeout_s: float = knob(1.0, "Seconds between two questions to the front end who owns a request.", "> 0")
    last_blocks_grace_s: float = knob(
        0.005, "Seconds a target holds its next step for the last blocks of a request that is just arriving."
    )
    transports: str = knob(
        "same-gpu",
        "What moves blocks beside sockets, the first that both ends can: same-gpu (within a GPU that instances share), "
        "cuda (there, and between GPUs of one machine), nixl (RDMA between machines, and within one), with a comma "
        "between them; or host: nothing does.",
    )
    max_incoming: int = knob(16, "Migrations an instance takes at once; more are refused.")
    max_outgoing: int = knob(16, "Migrations an instance makes at once, such as when it drains; more are refused.")

    @property
    def ways(self) -> list[str]:
        """The transports that were named, the best first."""
        return [word for word in self._words if word != "host"]

    @property
    def _words(self) -> list[str]:
        return [word.strip() for word in self.transports.split(",") if word.strip()]

    def __post_init__(self) -> None:
        check_knobs(self)
        _require(0 <= self.last_blocks_grace_s <= 1, "--last-blocks-grace-s must be between 0 and 1.")
        unknown = set(self._words) - set(WAYS)
        _require(not unknown, f"--transports knows {', '.join(WAYS)}, not {', '.join(sorted(unknown))}.")
        _require(
            "host" not in self._words or not self.ways, "--transports host stands alone: nothing else moves blocks."
        )
        _require(
            not {"same-gpu", "cuda"} <= {*self.ways}, "--transports cuda is for the same GPU, too: leave same-gpu out."
        )
        _require(
            self.max_incoming >= 1 and self.max_outgoing >= 1, "--max-incoming and --max-outgoing must be at least 1."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Instances, their health, and the processes around them."""

    instances: int = knob(2, "Engine instances to start.")
    instances_per_gpu: int = knob(
        1,
        "Instances that share a GPU (or as many GPUs as one of them needs), each with its part of the memory.",
        ">= 1",
    )
    launcher: str = knob(
        "local",
        "How instances are started: local (processes on this machine) or ray (actors on a Ray cluster).",
        values=("local", "ray"),
    )
    ray_address: str = knob(
        "", "Head of the Ray cluster, HOST:PORT or auto (default: RAY_ADDRESS, else a cluster is made on the spot)."
    )
    placement: str = knob(
        "spread",
        "With Ray, instances go to different machines (spread) or to as few as can (pack).",
        values=("spread", "pack"),
    )
    instance_cpus: float | None = knob(
        None, "CPUs that Ray sets aside for an instance (default: one for each of its workers).", "> 0"
    )
    cluster_address: str = knob(
        "", "With Ray, address of this machine that the others reach it at (default: the one on the way to the head)."
    )
    report_interval_s: float = knob(0.02, "At most one load report per instance in this many seconds.", "> 0")
    quiet_report_interval_s: float = knob(
        0.1,
        "So often a load report says that nothing has changed but the lengths of requests (0: after each step).",
        ">= 0",
    )
    max_reports_per_s: float = knob(
        5000.0,
        "Load reports per second that the scheduler, or a front end, hears of all instances together: where there are "
        "many, each reports less often (urgent ones come at once).",
        ">= 1",
    )
    heartbeat_interval_s: float = knob(0.2, "Seconds between heartbeats of an instance, where there are few.", "> 0")
    instance_timeout_s: float = knob(10.0, "Seconds without a heartbeat after which an instance counts as lost.", "> 0")
    step_timeout_s: float = knob(
        120.0,
        "Seconds that a step or a call of an engine may take while it has work; after that it counts as hung.",
        "> 0",
    )
    start_timeout_s: float = knob(600.0, "Seconds an instance may take to start.", "> 0")
    shutdown_timeout_s: float = knob(
        30.0,
        "Seconds that running requests get to finish after SIGTERM.",
        ">= 0",
        also=("--shutdown-timeout",),
    )
    scaling: str = knob(
        "off",
        "Auto-scaling: off, advise (only say what it would do, and why) or on (start and drain instances).",
        values=("off", "advise", "on"),
    )
    drain_timeout_s: float = knob(
        30.0, "Seconds after which the requests that are left on a draining instance are replayed elsewhere.", ">= 0"
    )
    max_queued_requests: int = knob(0, "Above this many queued requests new ones get 503 (0: no limit).", ">= 0")
    classes: str = knob(
        "",
        "YAML or JSON file with classes of requests and who sends them: targets, limits (docs/use/classes.md).",
        path=True,
    )
    kept_media_mb: int = knob(
        4096,
        "MB of processed images and the like that a front end keeps of running streams, so that these go on when their "
        "instance dies (those that do not fit end with an error then).",
        ">= 0",
    )
    restart_instances: bool = knob(True, "Start a new instance in place of one that died.")
    admin_port: int = knob(0, "Port of the admin routes, if not the one of the others (0: the same).")
    admin_allowed_hosts: str = knob(
        "",
        "Names under which the admin routes may be called without an API key, beside localhost, --host and this "
        "machine's own: NAME,NAME,... or * for any.",
    )
    decision_log: str = knob(
        "",
        "File for all that happens to requests and instances, and why: a line of JSON each, of each process in a file "
        "of its own, FILE.f0, FILE.s, ... (-: to their logs).",
        path=True,
    )
    record: str = knob(
        "",
        "Folder for recorded runs: lengths, times and moves of all requests, without their contents, for `llumnix "
        "whatif` and the like (docs/use/recording.md).",
        path=True,
    )
    record_mb: int = knob(512, "MB of one recorded run; then its oldest hours make room for new ones.", ">= 1")
    record_keep_mb: int = knob(4096, "MB of all recorded runs in that folder; then the oldest make room for a new one.")
    page: str = knob(
        "on",
        "The live page at /llumnix/: on, view (it offers nothing to do) or off.",
        values=("on", "view", "off"),
    )
    log_dir: str = knob("", "Folder for the logs of all processes (default: one that goes at the end).", path=True)
    verbose: bool = knob(False, "Show the log of every process on the console instead of writing files.")
    log_format: str = knob(
        "text", "Logs and console as text for people, or as json: an object a line.", values=("text", "json")
    )

    def __post_init__(self) -> None:
        _require(1 <= self.instances <= 4096, f"--instances must be between 1 and 4096, not {self.instances}.")
        _require(0 <= self.admin_port < 65536, f"--admin-port must be below 65536, not {self.admin_port}.")
        check_knobs(self)
        for name in ("instance_timeout", "step_timeout"):
            _require(
                getattr(self, f"{name}_s") > 2 * self.heartbeat_interval_s,
                f"--{name.replace('_', '-')}-s must be more than twice --heartbeat-interval-s, "
                "or a single late heartbeat kills.",
            )
        _require(
            self.record_keep_mb >= self.record_mb,
            f"--record-keep-mb {self.record_keep_mb} has no room for a run of --record-mb {self.record_mb}.",
        )
        _require(
            not (self.verbose and self.log_dir), "--verbose has every process write to the console, --log-dir to files."
        )
        _require(
            not self.ray_address.startswith("ray://"),
            "--ray-address must be HOST:PORT of the head, not ray://: serve on a machine of the cluster.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """Auto-scaling. Freeness is in blocks per request, over the whole cluster."""

    scale_out_freeness: float = knob(10.0, "Start instances when the cluster's freeness stays below this.")
    scale_in_freeness: float = knob(60.0, "Drain an instance when the cluster's freeness stays above this.")
    scale_window_s: float = knob(10.0, "Seconds that the freeness must stay there.", ">= 0")
    min_instances: int = knob(1, "Never fewer instances than this.")
    max_instances: int = knob(1, "Never more instances than this.")

    def __post_init__(self) -> None:
        check_knobs(self)
        _require(
            self.scale_in_freeness > self.scale_out_freeness,
            f"--scale-in-freeness ({self.scale_in_freeness:g}) must be above "
            f"--scale-out-freeness ({self.scale_out_freeness:g}), or instances would come and go.",
        )
        _require(
            1 <= self.min_instances <= self.max_instances,
            f"--min-instances ({self.min_instances}) must be at least 1 and not above "
            f"--max-instances ({self.max_instances}).",
        )
