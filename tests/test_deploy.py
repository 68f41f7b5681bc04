"""The files in deploy/ say what the program understands."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llumnix.flags import ServeArguments, parse_serve

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((DEPLOY / name).read_text()) if document]


def kuberay(kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents("kuberay.yaml") if document["kind"] == kind]
    return found


def server_container() -> dict[str, Any]:
    (container,) = kuberay("Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(container)


def ray_containers() -> Iterator[dict[str, Any]]:
    spec = kuberay("RayCluster")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield from group["template"]["spec"]["containers"]


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "llumnix.service")
    return parser


def serve_words(command: str) -> list[str]:
    """What `llumnix serve` is told, with a shell's defaults filled in: `${N:-2}` is 2."""
    command = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", command)
    words = shlex.split(command.partition("llumnix serve ")[2])
    return [word for word in words if not word.startswith("$")]


def understood(command: str) -> ServeArguments:
    arguments = parse_serve(serve_words(command))
    assert set(arguments.engine_flags) <= {"--host", "0.0.0.0"}, "none of our flags is mistaken for one of vLLM's"
    return arguments


def test_image_serves_with_flags_that_exist() -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert yaml.safe_load(command)[0] == "serve"
    understood(f"llumnix {' '.join(yaml.safe_load(command))}")


@pytest.mark.parametrize("lock", re.findall(r"requirements/\S+\.lock", (DEPLOY / "Dockerfile").read_text()))
def test_image_is_built_from_files_that_exist(lock: str) -> None:
    assert (ROOT / lock).is_file()


def test_compose_serves_on_the_ray_cluster_that_it_starts() -> None:
    (compose,) = documents("compose.yaml")
    head, node = compose["services"]["head"], compose["services"]["node"]
    arguments = understood(head["command"][0])
    assert (arguments.cluster.launcher, arguments.cluster.ray_address) == ("ray", "auto")
    assert arguments.cluster.admin_allowed_hosts == "head", "its name on the containers' network"
    assert "--port=6379" in head["command"][0]
    assert "--address=head:6379" in node["entrypoint"]
    assert all(port.startswith("127.0.0.1:") for port in head["ports"]), "nothing is open to the world by itself"
    assert int(head["stop_grace_period"].rstrip("s")) > arguments.cluster.shutdown_timeout_s


def test_kubernetes_serves_on_the_ray_cluster_of_the_same_file() -> None:
    container = server_container()
    arguments = understood(container["args"][0])
    assert (arguments.cluster.launcher, arguments.cluster.ray_address) == ("ray", "auto")
    assert arguments.cluster.admin_allowed_hosts == kuberay("Service")["metadata"]["name"]
    assert f"--address={kuberay('RayCluster')['metadata']['name']}-head-svc:6379" in container["args"][0]
    engine = kuberay("RayCluster")["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert arguments.cluster.instance_cpus == float(engine["resources"]["limits"]["cpu"])
    grace_s = kuberay("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > arguments.cluster.shutdown_timeout_s


def test_kubernetes_runs_one_image_and_the_pinned_ray_and_shows_its_token_everywhere() -> None:
    containers = [server_container(), *ray_containers()]
    assert {container["image"] for container in containers} == {"llumnix:cpu"}
    (pinned,) = (ROOT / "requirements" / "ray.lock").read_text().split()
    assert pinned == f"ray=={kuberay('RayCluster')['spec']['rayVersion']}"
    secret = kuberay("Secret")
    for container in containers:
        environment = {variable["name"]: variable for variable in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        key = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert key["name"] == secret["metadata"]["name"]
        assert key["key"] in secret["stringData"]


def test_service_finds_the_server() -> None:
    labels = kuberay("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert kuberay("Service")["spec"]["selector"].items() <= labels.items()
    assert kuberay("Service")["spec"]["ports"][0]["targetPort"] in {
        port["name"] for port in server_container()["ports"]
    }


def test_unit_serves_and_waits_for_the_end() -> None:
    service = unit()["Service"]
    arguments = understood(service["ExecStart"])
    assert int(service["TimeoutStopSec"]) > arguments.cluster.shutdown_timeout_s
    assert service["RestartPreventExitStatus"] == "2"
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main"), "children are not told where it listens"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_unit_is_what_systemd_understands(tmp_path: Path) -> None:
    text = (DEPLOY / "llumnix.service").read_text().replace("/opt/llumnix/bin/llumnix", "/bin/true")
    (tmp_path / "llumnix.service").write_text(text)
    run = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "llumnix.service")], capture_output=True, text=True, check=False
    )
    assert (run.returncode, [line for line in run.stderr.splitlines() if "llumnix" in line]) == (0, [])
