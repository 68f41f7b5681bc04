"""The files in deploy/ say what the program understands."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llumnix.api.routes import PREFIX, ROUTES
from llumnix.cluster import children, launcher, processes, supervisor
from llumnix.flags import ServeArguments, parse_serve
from monitoring_tools import RULES

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("cpu", "gpu")


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def listed(folder: Path) -> list[Path]:
    """The manifests of a kustomization and of those that it builds on."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    found: list[Path] = []
    for name in kustomization.get("resources", ()):
        path = (folder / name).resolve()
        found += listed(path) if path.is_dir() else [path]
    return found


def patched(document: dict[str, Any], operations: list[dict[str, Any]]) -> None:
    """JSON patches (RFC 6902), as far as ours go."""
    for operation in operations:
        *way, last = operation["path"].strip("/").split("/")
        place: Any = document
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        assert (last in place) == (operation["op"] == "replace"), f"{operation['op']} {operation['path']}"
        if last == "-":
            place.append(operation["value"])
        else:
            place[last] = operation["value"]


def rendered(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of it, but for images, which `image_of` looks up."""
    folder = KUBERNETES / overlay
    (kustomization,) = documents(folder / "kustomization.yaml")
    found = [document for path in listed(folder) for document in documents(path)]
    for patch in kustomization.get("patches", ()):
        (document,) = [each for each in found if each["kind"] == patch["target"]["kind"]]
        patched(document, yaml.safe_load((folder / patch["path"]).read_text()))
    return found


def image_of(overlay: str) -> str:
    (kustomization,) = documents(KUBERNETES / overlay / "kustomization.yaml")
    (image,) = kustomization["images"]
    assert image["name"] == "llumnix"
    return f"{image['newName']}:{image['newTag']}"


def kubernetes(overlay: str, kind: str) -> dict[str, Any]:
    (found,) = [document for document in rendered(overlay) if document["kind"] == kind]
    return found


def server_container(overlay: str) -> dict[str, Any]:
    (container,) = kubernetes(overlay, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(container)


def ray_pods(overlay: str) -> list[dict[str, Any]]:
    spec = kubernetes(overlay, "RayCluster")["spec"]
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def pods(overlay: str) -> list[dict[str, Any]]:
    return [kubernetes(overlay, "Deployment")["spec"]["template"], *ray_pods(overlay)]


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


def served(overlay: str) -> ServeArguments:
    """What its server is told besides the model."""
    words = [word for word in serve_words(server_container(overlay)["args"][0]) if word != "Qwen/Qwen3-8B"]
    return understood(f"llumnix serve {shlex.join(words)}")


def ends_in_s(arguments: ServeArguments) -> float:
    """From SIGTERM, at worst: front ends are killed, then instances; then what started them, and what is left."""
    requests_s = arguments.cluster.shutdown_timeout_s + supervisor._FRONT_END_GRACE_S
    _, nursery_s = launcher._NURSERIES[arguments.cluster.launcher]
    return requests_s + processes.STOP_TIMEOUT_S + nursery_s + children.REST_S


def test_image_serves_with_flags_that_exist() -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert yaml.safe_load(command)[0] == "serve"
    understood(f"llumnix {' '.join(yaml.safe_load(command))}")


@pytest.mark.parametrize("lock", re.findall(r"requirements/\S+\.lock", (DEPLOY / "Dockerfile").read_text()))
def test_image_is_built_from_files_that_exist(lock: str) -> None:
    assert (ROOT / lock).is_file()


def test_compose_serves_on_the_ray_cluster_that_it_starts() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    text = (DEPLOY / "compose.yaml").read_text()
    assert [name for name in re.findall(r"\$\{(\w+):\?", text) if f"#   export {name}=" not in text] == []
    head, node = compose["services"]["head"], compose["services"]["node"]
    arguments = understood(head["command"][0])
    assert (arguments.cluster.launcher, arguments.cluster.ray_address) == ("ray", "auto")
    assert arguments.cluster.admin_allowed_hosts == "head", "its name on the containers' network"
    assert "--port=6379" in head["command"][0]
    assert "--address=head:6379" in node["entrypoint"]
    assert all(port.startswith("127.0.0.1:") for port in head["ports"]), "nothing is open to the world by itself"
    assert int(head["stop_grace_period"].rstrip("s")) > ends_in_s(arguments)
    assert all(service["image"] == "llumnix:cpu" for service in (head, node)), "each would count all GPUs as its own"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_serves_on_the_ray_cluster_beside_it(overlay: str) -> None:
    ray_cluster, arguments = kubernetes(overlay, "RayCluster"), served(overlay)
    assert (arguments.cluster.launcher, arguments.cluster.ray_address) == ("ray", "auto")
    assert arguments.cluster.admin_allowed_hosts == kubernetes(overlay, "Service")["metadata"]["name"]
    assert f"--address={ray_cluster['metadata']['name']}-head-svc:6379" in server_container(overlay)["args"][0]
    group = ray_cluster["spec"]["workerGroupSpecs"][0]
    (engine,) = group["template"]["spec"]["containers"]
    assert arguments.cluster.instance_cpus == float(engine["resources"]["requests"]["cpu"]), "one engine fills a pod"
    assert group["minReplicas"] <= arguments.cluster.instances == group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pod_of_the_server_ends_after_its_requests(overlay: str) -> None:
    """What its grace must hold: until nobody sends it new connections, its requests, and the end of its processes."""
    pod, container = kubernetes(overlay, "Deployment")["spec"]["template"]["spec"], server_container(overlay)
    _, waits_s = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > float(waits_s) + ends_in_s(served(overlay))
    assert "exec llumnix serve" in container["args"][0], "else the shell gets SIGTERM, and nobody else"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_what_they_are_for(overlay: str) -> None:
    container = server_container(overlay)
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths["startup"] == paths["readiness"] == "/health"
    alive = paths["liveness"].removeprefix(PREFIX)
    (route,) = [route for route in ROUTES if route.path == alive]
    assert not route.guarded, "a kubelet calls by the pod's address, and has no key"
    startup, limit_s = container["startupProbe"], served(overlay).cluster.start_timeout_s
    patience_s = startup["periodSeconds"] * startup["failureThreshold"]
    assert patience_s >= 3600 > 2 * limit_s, "to load the engine, to wait for room, and to start an instance"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_runs_one_image_and_the_pinned_ray_and_shows_its_token_everywhere(overlay: str) -> None:
    assert image_of(overlay) == f"llumnix:{overlay}"
    (pinned,) = (ROOT / "requirements" / "ray.lock").read_text().split()
    assert pinned == f"ray=={kubernetes(overlay, 'RayCluster')['spec']['rayVersion']}"
    for pod in pods(overlay):
        (container,) = pod["spec"]["containers"]
        assert container["image"] == "llumnix"
        environment = {variable["name"]: variable for variable in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {
            "name": "llumnix-ray-token",
            "key": "token",
        }
    assert all(document["kind"] != "Secret" for document in rendered(overlay)), "nobody runs with a word from a file"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_may_do_no_more_than_they_need(overlay: str) -> None:
    for pod in pods(overlay):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_and_budget_find_their_pods(overlay: str) -> None:
    labels = kubernetes(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    service = kubernetes(overlay, "Service")["spec"]
    assert service["selector"].items() <= labels.items()
    assert service["ports"][0]["targetPort"] in {port["name"] for port in server_container(overlay)["ports"]}
    ray_cluster = kubernetes(overlay, "RayCluster")
    group = ray_cluster["spec"]["workerGroupSpecs"][0]["groupName"]
    of_kuberay = {"ray.io/cluster": ray_cluster["metadata"]["name"], "ray.io/group": group}
    assert kubernetes(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == of_kuberay


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_budget_lets_one_engine_go_at_a_time(overlay: str) -> None:
    """A RayCluster has no scale subresource: of its pods Kubernetes counts `minAvailable` alone, and
    that only as a number. With anything else it evicts none of them."""
    replicas = kubernetes(overlay, "RayCluster")["spec"]["workerGroupSpecs"][0]["replicas"]
    for document in rendered(overlay):
        if document["kind"] == "PodDisruptionBudget":
            assert "maxUnavailable" not in document["spec"]
            assert document["spec"]["minAvailable"] == replicas - 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_server_has_memory_for_what_it_keeps_of_images(overlay: str) -> None:
    limit = server_container(overlay)["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) * 1024 >= served(overlay).cluster.kept_media_mb + 2048


def test_gpu_engines_have_one_each_and_may_run_where_gpus_are() -> None:
    (engine,) = ray_pods("gpu")[1]["spec"]["containers"]
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == engine["resources"]["requests"]["nvidia.com/gpu"] == 1
    assert ray_pods("gpu")[1]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_gpu_server_sees_the_gpus_of_an_engines_node_and_takes_none() -> None:
    """vLLM's build for GPUs makes no configuration where NVML shows none."""
    spec, container = kubernetes("gpu", "Deployment")["spec"]["template"]["spec"], server_container("gpu")
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in container["env"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["tolerations"] == ray_pods("gpu")[1]["spec"]["tolerations"]
    (beside,) = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert beside["labelSelector"] == kubernetes("gpu", "PodDisruptionBudget")["spec"]["selector"]
    assert not any("gpu" in name for amounts in container["resources"].values() for name in amounts)


def test_operator_gets_the_same_alerts_and_the_board_and_asks_the_service() -> None:
    monitoring = [document for path in listed(KUBERNETES / "monitoring") for document in documents(path)]
    kinds = {document["kind"]: document for document in monitoring}
    assert set(kinds) == {"ServiceMonitor", "PrometheusRule"}
    assert kinds["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())
    service = kubernetes("cpu", "Service")
    assert kinds["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert kinds["ServiceMonitor"]["spec"]["endpoints"][0]["port"] in {
        port["name"] for port in service["spec"]["ports"]
    }
    (board,) = documents(DEPLOY / "grafana" / "kustomization.yaml")
    (files,) = [each["files"] for each in board["configMapGenerator"]]
    assert all((DEPLOY / "grafana" / name).is_file() for name in files)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_understands_every_field(overlay: str) -> None:
    """Pods of Ray, too: KubeRay hands their templates on as they are."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    known = [document for document in rendered(overlay) if not document["apiVersion"].startswith("ray.io/")]
    assert {document["kind"] for document in known} == {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"}
    of_ray = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | pod["metadata"], "spec": pod["spec"]}
        for pod in ray_pods(overlay)
    ]
    for document in (*known, *of_ray):
        validator.validate(document, "1.32", strict=True)


@pytest.mark.parametrize("overlay", [*OVERLAYS, "monitoring"])
def test_kustomize_makes_the_same_of_it(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl")
    version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
    if not re.search(r"^Kustomize Version: v[4-9]", version, re.MULTILINE):
        pytest.skip("this kubectl is of before Kustomize 4")
    command = ["kubectl", "kustomize", str(KUBERNETES / overlay)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    made = {document["kind"]: document for document in yaml.safe_load_all(run.stdout)}
    if overlay == "monitoring":
        assert made.pop("ConfigMap")["data"]["llumnix.json"] == (DEPLOY / "grafana" / "llumnix.json").read_text()
        assert set(made) == {"ServiceMonitor", "PrometheusRule"}
        return
    ours = yaml.safe_dump({document["kind"]: document for document in rendered(overlay)}, sort_keys=True)
    images = re.sub(r"image: llumnix$", f"image: {image_of(overlay)}", ours, flags=re.MULTILINE)
    assert yaml.safe_load(images) == made


def test_unit_serves_and_waits_for_the_end() -> None:
    service = unit()["Service"]
    arguments = understood(service["ExecStart"])
    assert int(service["TimeoutStopSec"]) > ends_in_s(arguments)
    assert service["RestartPreventExitStatus"] == "2"
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main"), "children are not told where it listens"


def test_unit_hides_no_gpu_and_keeps_temporary_files_where_programs_may_be_run() -> None:
    service = unit()["Service"]
    assert not {"ProtectClock", "PrivateDevices", "DevicePolicy", "DeviceAllow"} & set(service)
    assert service["PrivateTmp"] == "yes"
    assert "TMPDIR" not in service["Environment"], "what is compiled there is loaded, and /run may be noexec"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_unit_is_what_systemd_understands(tmp_path: Path) -> None:
    text = (DEPLOY / "llumnix.service").read_text().replace("/opt/llumnix/bin/llumnix", "/bin/true")
    (tmp_path / "llumnix.service").write_text(text)
    run = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "llumnix.service")], capture_output=True, text=True, check=False
    )
    assert (run.returncode, [line for line in run.stderr.splitlines() if "llumnix" in line]) == (0, [])
