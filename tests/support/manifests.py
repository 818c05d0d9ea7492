"""The manifests of k8s/ as kustomize builds them, the pods in them, and ways to find and change a value."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "k8s/README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OVERLAYS = ("dev", "gpu", "dev-cluster", "gpu-cluster")
COMPONENT = "app.kubernetes.io/component"
RAY_NODES = ("head", "learner", "rollout")

# Where a RayJob says it.
CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec"
LEARNER = f"{CLUSTER}.workerGroupSpecs.0"
RAY = f"{HEAD}.template.spec.containers.0"

Manifest = dict[str, Any]


def kustomize() -> list[str]:
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    pytest.fail(
        "k8s/ is built by kubectl or kustomize, and neither is on the PATH: apt-get install kubernetes-client"
        " (Debian 13 or newer), or as Kubernetes' page 'Install Tools' says"
    )


@cache
def _built(overlay: str) -> str:
    command = [*kustomize(), str(ROOT / "k8s/overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # it warns of what is deprecated
    return json.dumps(list(yaml.safe_load_all(done.stdout)))


def built(overlay: str) -> list[Manifest]:
    """The manifests of an overlay, new each time."""
    found: list[Manifest] = json.loads(_built(overlay))
    return found


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    (found,) = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    return found


def at(node: Any, path: str) -> Any:
    """The node at a path such as spec.containers.0.image."""
    for part in path.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def beneath(node: Any, *keys: str) -> Iterator[Any]:
    """What stands anywhere below a node under one of the keys."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        if key in keys:
            yield child
        if isinstance(child, dict | list):
            yield from beneath(child, *keys)


def put(manifest: Manifest, path: str, value: Any) -> None:
    """Replace what is at a path that is there but for its last part; None takes it away."""
    parent, _, last = path.rpartition(".")
    node = at(manifest, parent) if parent else manifest
    if value is None:
        del node[int(last) if isinstance(node, list) else last]
    else:
        node[int(last) if isinstance(node, list) else last] = value


@dataclass(frozen=True)
class Pod:
    name: str
    labels: dict[str, str]
    spec: Manifest
    autoscaler: Manifest | None = None
    """The container that KubeRay adds to a head."""

    @property
    def component(self) -> str:
        return self.labels[COMPONENT]

    @property
    def containers(self) -> list[Manifest]:
        mine = [*self.spec["containers"], *self.spec.get("initContainers", [])]
        return [*mine, self.autoscaler] if self.autoscaler else mine


def cluster_of(manifest: Manifest) -> Manifest:
    """The specification of a RayJob's or RayCluster's cluster."""
    spec: Manifest = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def ray_of(manifests: list[Manifest]) -> Manifest:
    (found,) = [m for m in manifests if m["apiVersion"] == "ray.io/v1"]
    return found


def pods(manifests: list[Manifest]) -> list[Pod]:
    def pod(template: Manifest, autoscaler: Manifest | None = None) -> Pod:
        labels = template["metadata"]["labels"]
        return Pod(labels[COMPONENT], labels, template["spec"], autoscaler)

    found = [pod(m["spec"]["template"]) for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]
    ray = ray_of(manifests)
    if "submitterPodTemplate" in ray["spec"]:
        found.append(pod(ray["spec"]["submitterPodTemplate"]))
    cluster = cluster_of(ray)
    autoscaler = {"name": "autoscaler", **cluster["autoscalerOptions"]}
    found.append(pod(cluster["headGroupSpec"]["template"], autoscaler))
    return found + [pod(group["template"]) for group in cluster["workerGroupSpecs"]]


def quantity(text: str | int) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(m|[kMGT]i?)?", str(text)).groups()  # type: ignore[union-attr]
    scale = {None: 1.0, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return float(number) * scale[unit]


def mounts(container: Manifest) -> list[Manifest]:
    return list(container.get("volumeMounts", []))
