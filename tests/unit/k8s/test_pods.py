"""k8s/: what pods may do, and what they may take."""

import json
from typing import Any

import pytest
from support.manifests import (
    CLUSTER,
    HEAD,
    LEARNER,
    OVERLAYS,
    RAY,
    RAY_NODES,
    Manifest,
    built,
    cluster_of,
    mounts,
    one,
    pods,
    put,
    quantity,
    ray_of,
)


def careless(manifests: list[Manifest]) -> list[str]:
    """What pods could do that they need not, or take without end."""
    found: list[str] = []
    for pod in pods(manifests):
        spec, security = pod.spec, pod.spec.get("securityContext", {})
        wrong = {
            "a token": spec.get("automountServiceAccountToken") is not False,
            "service variables": spec.get("enableServiceLinks") is not False,
            "root": security.get("runAsNonRoot") is not True or not security.get("runAsUser"),
            "system calls": security.get("seccompProfile") != {"type": "RuntimeDefault"},
            "the host": any(spec.get(f"host{what}") for what in ("Network", "PID", "IPC"))
            or any("hostPath" in volume for volume in spec.get("volumes", [])),
        }
        for container in pod.containers:
            mine, resources = container.get("securityContext", {}), container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            bounded = {"cpu", "memory"} <= set(requests) & set(limits) and set(requests) == set(limits)
            probes = {"readinessProbe", "livenessProbe"} <= set(container)
            wrong |= {
                "privileges": mine.get("allowPrivilegeEscalation") is not False or "privileged" in mine,
                "capabilities": mine.get("capabilities") != {"drop": ["ALL"]},
                "another user": bool({"runAsUser", "runAsNonRoot", "seccompProfile"} & set(mine)),
                "no limits": not bounded
                or any(quantity(requests[k]) > quantity(limits[k]) for k in requests),
                "no probes": not probes and container["name"] not in ("ray-job-submitter", "autoscaler"),
            }
            found += [f"{pod.name} {container['name']}: {what}" for what, is_so in wrong.items() if is_so]
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_bounded_and_nobodys_root(overlay: str) -> None:
    assert {pod.component for pod in pods(built(overlay))} >= {*RAY_NODES, "mlflow", "postgres"}
    assert careless(built(overlay)) == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayJob", f"{HEAD}.template.spec.securityContext.runAsUser", 0),
        ("RayJob", f"{HEAD}.template.spec.securityContext.runAsNonRoot", None),
        ("RayJob", f"{RAY}.securityContext.runAsUser", 0),
        ("RayJob", f"{RAY}.securityContext.capabilities.add", ["SYS_PTRACE"]),
        ("RayJob", f"{RAY}.resources.limits.memory", None),
        ("RayJob", f"{RAY}.resources.requests.cpu", "64"),
        ("RayJob", f"{RAY}.livenessProbe", None),
        ("RayJob", f"{LEARNER}.template.spec.automountServiceAccountToken", None),
        ("RayJob", f"{LEARNER}.template.spec.hostNetwork", True),
        ("RayJob", f"{LEARNER}.template.spec.volumes", [{"name": "shm", "hostPath": {"path": "/dev/shm"}}]),
        ("RayJob", f"{CLUSTER}.autoscalerOptions.securityContext", None),
        ("RayJob", f"{CLUSTER}.autoscalerOptions.resources", None),
        ("RayJob", "spec.submitterPodTemplate.spec.securityContext", None),
        (
            "RayJob",
            "spec.submitterPodTemplate.spec.containers.0.securityContext.allowPrivilegeEscalation",
            True,
        ),
        ("Deployment", "spec.template.spec.enableServiceLinks", None),
        ("Deployment", "spec.template.spec.containers.0.readinessProbe", None),
        ("StatefulSet", "spec.template.spec.securityContext.seccompProfile.type", "Unconfined"),
        ("StatefulSet", "spec.template.spec.containers.0.securityContext.privileged", True),
    ],
)
def test_a_careless_pod_is_found(kind: str, path: str, value: Any) -> None:
    manifests = built("dev")
    put(one(manifests, kind), path, value)
    assert careless(manifests) != []


def test_the_namespace_holds_pods_to_it_too() -> None:
    labels = one(built("dev"), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_autoscaler_has_a_token(overlay: str) -> None:
    for pod in pods(built(overlay)):
        tokens = [v["name"] for v in pod.spec.get("volumes", []) if "serviceAccountToken" in json.dumps(v)]
        mounted = [c["name"] for c in pod.containers for v in mounts(c) if v["name"] in tokens]
        assert mounted == (["autoscaler"] if pod.component == "head" else [])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_object_store_has_room_in_shared_memory(overlay: str) -> None:
    cluster = cluster_of(ray_of(built(overlay)))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        container = spec["containers"][0]
        (mount,) = [v["name"] for v in container["volumeMounts"] if v["mountPath"] == "/dev/shm"]
        (shm,) = [v["emptyDir"] for v in spec["volumes"] if v["name"] == mount]
        assert shm["medium"] == "Memory"
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store < quantity(shm["sizeLimit"]) < quantity(container["resources"]["limits"]["memory"]) / 2
