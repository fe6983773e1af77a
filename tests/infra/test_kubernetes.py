"""infra/k8s: what kustomize makes of it is valid, as tight as the restricted standard asks, and can talk to itself.

No cluster has seen it: this is what can be held without one.
"""

import json
import re
import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from tests.compose import ROOT, compose

K8S = ROOT / "infra" / "k8s"
OVERLAYS = ("base", "overlays/cpu", "overlays/gpu")
POOLS = {"cpu": K8S / "base" / "pool.json", "gpu": K8S / "overlays" / "gpu" / "pool-gpu.json"}
VERSIONS = ("1.31", "1.37")
Manifest = dict[str, Any]


@cache
def built(overlay: str) -> tuple[Manifest, ...]:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("no kubectl, whose kustomize builds the manifests")
    done = subprocess.run([kubectl, "kustomize", str(K8S / overlay)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def pods(overlay: str) -> dict[str, Manifest]:
    """The pod template of each workload, and of the flow runs of both pools."""
    kinds = ("Deployment", "StatefulSet", "Job")
    found = {m["metadata"]["name"]: m["spec"]["template"] for m in built(overlay) if m["kind"] in kinds}
    return found | {f"flow-run-{kind}": job(kind)["spec"]["template"] for kind in ("cpu", "gpu")}


def job(kind: str) -> Manifest:
    """The Job that the worker makes of a flow run, by its pool's template and the defaults of its form."""
    template = json.loads(POOLS[kind].read_text())
    given = {name: one.get("default") for name, one in template["variables"]["properties"].items()}
    given |= {"name": "turn", "command": ["prefect", "flow-run", "execute"], "env": [], "image": "flywheel:1"}

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            filled = {key: fill(one) for key, one in value.items()}
            return {key: one for key, one in filled.items() if one is not None}
        if isinstance(value, list):
            return [fill(one) for one in value]
        if isinstance(value, str) and (whole := re.fullmatch(r"\{\{ (\w+) \}\}", value)):
            return given[whole[1]]
        return re.sub(r"\{\{ (\w+) \}\}", lambda m: str(given[m[1]]), value) if isinstance(value, str) else value

    return dict(fill(template["job_configuration"]["job_manifest"]))


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_what_kubernetes_takes(version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for manifest in {json.dumps(m): m for overlay in OVERLAYS for m in built(overlay)}.values():
        validate(manifest, version, strict=True)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_flow_runs_job_is_what_kubernetes_takes_and_what_the_worker_reads(kind: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    made = job(kind)
    validate(made, VERSIONS[-1], strict=True)
    worker = pytest.importorskip("prefect_kubernetes.worker")
    template = json.loads(POOLS[kind].read_text())
    default = worker.KubernetesWorker.get_default_base_job_template()
    assert default["variables"]["properties"].keys() <= template["variables"]["properties"].keys()
    assert default["job_configuration"].keys() == template["job_configuration"].keys()


def test_each_overlay_has_the_pools_that_it_should() -> None:
    cpu, gpu = (json.loads(POOLS[kind].read_text()) for kind in ("cpu", "gpu"))
    for overlay, second in zip(OVERLAYS, (cpu, cpu, gpu), strict=True):
        (data,) = [m["data"] for m in built(overlay) if m["metadata"]["name"] == "pools"]
        pools = {name: json.loads(text) for name, text in data.items()}
        assert pools == {"pool-cpu.json": cpu, "pool-gpu.json": second}, overlay


def test_the_gpu_pool_asks_for_nodes_with_gpus_and_the_other_does_not() -> None:
    cpu, gpu = (job(kind)["spec"]["template"]["spec"] for kind in ("cpu", "gpu"))
    assert gpu["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert gpu["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nodeSelector" not in cpu and "nvidia" not in json.dumps(cpu)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_meets_the_restricted_standard(overlay: str) -> None:
    for name, pod in pods(overlay).items():
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }, name  # fmt: skip
        assert spec["enableServiceLinks"] is False, f"{name}: MLFLOW_PORT would be an address"
        assert container["resources"]["requests"] and container["resources"]["limits"]["memory"], name
        assert spec.get("automountServiceAccountToken") is False or name.startswith("worker"), name
        assert not spec.get("hostNetwork") and all("hostPath" not in one for one in spec["volumes"]), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_serves_is_probed_and_the_gateway_outlives_a_drained_node(overlay: str) -> None:
    manifests = {(m["kind"], m["metadata"]["name"]): m for m in built(overlay)}
    for (kind, name), manifest in manifests.items():
        if kind in ("Deployment", "StatefulSet"):
            (container,) = manifest["spec"]["template"]["spec"]["containers"]
            assert "livenessProbe" in container and ("readinessProbe" in container or name.startswith("worker")), name
    probes = manifests["StatefulSet", "gateway"]["spec"]["template"]["spec"]["containers"][0]
    paths = [probes[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
    assert paths == ["/healthz", "/healthz", "/readyz"]
    for name in ("gateway", "mlflow"):
        budget = manifests["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"]
        template = next(m for (k, n), m in manifests.items() if n == name and k in ("Deployment", "StatefulSet"))
        assert budget.items() <= template["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_the_image_is_named_once(overlay: str) -> None:
    (made,) = [m for m in built(overlay) if (m["kind"], m["metadata"]["name"]) == ("Job", "deployments")]
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert {"name": "IMAGE", "value": container["image"]} in container["env"]
    assert container["image"].startswith("registry.example.com/flywheel:")


def test_secrets_are_by_reference_and_each_is_one_that_is_made() -> None:
    assert not [m for m in built("overlays/gpu") if m["kind"] == "Secret"]
    made = set(compose()["secrets"])
    for name, pod in pods("overlays/gpu").items():
        volumes = [volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume]
        mounted = {item["key"] for secret in volumes for item in secret["items"]}
        assert {secret["secretName"] for secret in volumes} <= {"flywheel"} and mounted <= made, name
        (container,) = pod["spec"]["containers"]
        told = [one.get("value", "") for one in container.get("env", [])] + container.get("args", [])
        if "envFrom" in container:
            told += [line for line in (K8S / "base" / "settings.env").read_text().splitlines() if line[:1] != "#"]
        read = set(re.findall(r"(?:/run/secrets/flywheel|\$secrets)/(\w+)", " ".join(map(str, told))))
        assert read == mounted - {"roles.sql"}, name


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    within = all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))
    return within and selector.get("matchLabels", {}).items() <= labels.items()


def allowed(policies: list[Manifest], client: dict[str, str], server: dict[str, str], port: int) -> bool:
    """Whether a pod with the one's labels may open a connection to one with the other's, in the same namespace."""

    def some(direction: str, mine: dict[str, str], theirs: dict[str, str]) -> bool:
        side = "to" if direction == "egress" else "from"
        return any(
            port in [one["port"] for one in rule["ports"]]
            and any("podSelector" in peer and matches(peer["podSelector"], theirs) for peer in rule[side])
            for policy in policies if matches(policy["podSelector"], mine) for rule in policy.get(direction, [])
        )  # fmt: skip

    return some("egress", client, server) and some("ingress", server, client)


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_whom_a_pod_names_it_may_reach_and_nobody_else(overlay: str) -> None:
    policies = [m["spec"] for m in built(overlay) if m["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    services = {m["metadata"]["name"]: m["spec"]["ports"][0]["port"] for m in built(overlay) if m["kind"] == "Service"}
    settings = (K8S / "base" / "settings.env").read_text()
    # By what a pod is told; the database by the secrets it gets. MLflow calls the gateway, as `deployments` tells it.
    needs = {("mlflow", "gateway")}
    unused = {("deployments", "gateway"), ("gateway", "gateway")}
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(overlay).items()}
    for name, pod in pods(overlay).items():
        told = json.dumps(pod["spec"]) + (settings if "envFrom" in pod["spec"]["containers"][0] else "")
        named = set(re.findall(r"(?://|@)(\w+):\d", told)) | ({"postgres"} if "database_url" in told else set())
        needs |= {(name, other) for other in named & services.keys()}
    for name in labels:
        for other, port in services.items():
            may = allowed(policies, labels[name], labels[other], port)
            assert may == ((name, other) in needs - unused), f"{name} to {other}: {may}"
