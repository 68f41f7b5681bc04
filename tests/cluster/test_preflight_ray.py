"""What is said about Ray before anything is started."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

import pytest

from llumnix.cluster import preflight
from llumnix.cluster.environment import environment_abroad, instance_needs
from llumnix.config import ClusterConfig
from llumnix.errors import UsageError
from llumnix.flags import parse_serve


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--launcher slurm", "--launcher must be local or ray, not slurm."),
        ("--ray-address auto", "--ray-address is for --launcher ray."),
        ("--cluster-address 10.0.0.1", "--cluster-address is for --launcher ray."),
        ("--instance-cpus 2", "--instance-cpus is for --launcher ray."),
        ("--placement pack", "--placement is for --launcher ray."),
        ("--launcher ray --placement scatter", "--placement must be spread or pack, not scatter."),
        ("--launcher ray --instance-cpus 0", "--instance-cpus must be above 0."),
        (
            "--launcher ray --ray-address ray://head:10001",
            "--ray-address must be HOST:PORT of the head, not ray://: serve on a machine of the cluster.",
        ),
    ],
)
def test_flags_that_make_no_sense_get_a_sentence(flags: str, sentence: str) -> None:
    with pytest.raises(UsageError) as said:
        parse_serve(flags.split())
    assert str(said.value) == sentence


def test_address_of_the_cluster_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for Ray's own programs; a flag counts more, and the local launcher does not look."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert parse_serve(["--launcher", "ray"]).cluster.ray_address == "head:6379"
    assert parse_serve(["--launcher", "ray", "--ray-address", "auto"]).cluster.ray_address == "auto"
    assert parse_serve([]).cluster.ray_address == ""


def test_missing_ray_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str, package: Any = None) -> Any:
        return None if name == "ray" else object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(UsageError, match=r"Ray is not installed: pip install 'ray>=2\.60'"):
        preflight.check_ray("")


@pytest.mark.parametrize("address", ["head", "head:65536", f"head:{'9' * 30}"])
def test_word_that_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match=rf"must be HOST:PORT or auto, not {address}\."):
        preflight.check_ray(address)


def test_head_that_can_be_no_name_of_a_host() -> None:
    with pytest.raises(UsageError, match=r"at a\.\.b:6379 cannot be reached: no name of a host is like that\.$"):
        preflight.check_ray("a..b:6379")


def test_port_where_nobody_listens() -> None:
    with pytest.raises(UsageError, match="cannot be reached: connection refused"):
        preflight.check_ray("127.0.0.1:1")


def test_port_where_somebody_listens_is_good_enough_for_now() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        preflight.check_ray(f"127.0.0.1:{head.getsockname()[1]}")


def test_an_instance_needs_a_cpu_for_each_worker_unless_told_otherwise() -> None:
    assert instance_needs(ClusterConfig(launcher="ray"), 4)["CPU"] == 4.0
    assert instance_needs(ClusterConfig(launcher="ray", instance_cpus=1.5), 4)["CPU"] == 1.5


def test_words_for_the_engine_go_to_other_machines_and_places_and_secrets_do_not() -> None:
    here = {
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "HF_TOKEN": "t",
        "OMP_NUM_THREADS": "1",
        "LLUMNIX_FAULT": "none",
        "VLLM_HOST_IP": "10.0.0.1",
        "VLLM_API_KEY": "secret",
        "LLUMNIX_API_KEY": "secret",
        "LLUMNIX_URL": "http://127.0.0.1:8000",
        "HF_HOME": "/here",
        "PATH": "/bin",
        "HOME": "/root",
    }
    assert set(environment_abroad(here)) == {"VLLM_LOGGING_LEVEL", "HF_TOKEN", "OMP_NUM_THREADS", "LLUMNIX_FAULT"}
