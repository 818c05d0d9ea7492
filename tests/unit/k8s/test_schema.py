"""k8s/: every manifest fits the schema of Kubernetes or KubeRay, and a mistake does not."""

import json
import re
from copy import deepcopy
from functools import cache
from importlib.resources import files
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from support.manifests import (
    CLUSTER,
    HEAD,
    LEARNER,
    OVERLAYS,
    RAY,
    README,
    ROOT,
    Manifest,
    built,
    cluster_of,
    one,
    put,
)

# Kubernetes' are from kubernetes-validate, KubeRay's from tests/data/k8s, both without unknown fields.

VERSIONS = ("1.30", "1.37")  # the oldest that README names, and the newest that kubernetes-validate knows


@cache
def kuberay(kind: str) -> Draft202012Validator:
    schema = json.loads((ROOT / "tests/data/k8s/kuberay-v1.json").read_text())
    Draft202012Validator.check_schema(schema)
    strict = f"kubernetes-json-schema/v{VERSIONS[-1]}.0-local-strict/_definitions.json"
    kubernetes = json.loads((files(kubernetes_validate) / strict).read_text())
    registry = [Resource.from_contents(schema), Resource.from_contents(kubernetes)] @ Registry()
    return Draft202012Validator({"$ref": f"kuberay-v1.json#/$defs/{kind}"}, registry=registry)


def misfits(manifest: Manifest) -> list[str]:
    """What the schemas refuse in a manifest."""
    kind, name = manifest["kind"], manifest["metadata"].get("name")
    found: list[str] = []
    if manifest["apiVersion"] == "ray.io/v1":
        errors = kuberay(kind).iter_errors(manifest)
        found += [f"{kind} {name}: {error.json_path}: {error.message}" for error in errors]
        spec = cluster_of(manifest)
        for group in spec["workerGroupSpecs"] if not found else []:
            if group["minReplicas"] > group["maxReplicas"]:
                found.append(f"{kind} {name}: more minReplicas than maxReplicas")
        return found
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{kind} {name}: {'.'.join(map(str, error.path))}: {error.message}")
    return found


def test_every_manifest_fits_its_schema() -> None:
    different = {json.dumps(m, sort_keys=True) for overlay in OVERLAYS for m in built(overlay)}
    kinds = {json.loads(text)["kind"] for text in different}
    assert {"RayJob", "RayCluster", "StatefulSet", "Deployment", "NetworkPolicy", "Namespace"} < kinds
    assert [error for text in different for error in misfits(json.loads(text))] == []


MISFITS = [
    # Pod templates within KubeRay's resources.
    ("RayJob", f"{RAY}.imagePullPolice", "Always"),
    ("RayJob", f"{RAY}.securityContext.runAsNonroot", True),
    ("RayJob", f"{LEARNER}.template.spec.hostNetwerk", True),
    ("RayJob", f"{LEARNER}.template.spec.containers", []),
    ("RayJob", f"{RAY}.name", None),
    ("RayJob", f"{RAY}.ports.0.containerPort", "6379"),
    ("RayJob", "spec.submitterPodTemplate.spec.volumess", []),
    ("RayJob", f"{CLUSTER}.autoscalerOptions.securityContext.privilege", False),
    # KubeRay's own fields: unknown, of another type, missing, another word.
    ("RayJob", f"{CLUSTER}.enableInTreeAutoscale", True),
    ("RayCluster", "spec.workerGroupSpec", []),
    ("RayCluster", "spec.replicas", 1),
    ("RayJob", f"{LEARNER}.maxReplicas", "1"),
    ("RayJob", f"{LEARNER}.maxReplicas", None),
    ("RayJob", f"{LEARNER}.maxReplicas", 0),
    ("RayJob", f"{LEARNER}.groupName", None),
    ("RayCluster", "spec.headGroupSpec", None),
    ("RayJob", f"{HEAD}.rayStartParams.num-cpus", 0),
    ("RayJob", f"{CLUSTER}.autoscalerOptions.version", "v3"),
    ("RayJob", f"{CLUSTER}.autoscalerOptions.upscalingMode", "default"),
    ("RayJob", f"{CLUSTER}.authOptions.mode", "tokens"),
    ("RayJob", "spec.submissionMode", "HTTP"),
    ("RayJob", "spec.deletionStrategy.deletionRules.0.policy", "DeleteAll"),
    ("RayJob", "spec.deletionStrategy.deletionRules.0.condition.jobStatus", "STOPPED"),
    ("RayJob", "spec.deletionStrategy.deletionRules.0.condition", None),
    ("RayJob", "spec.deletionStrategy.deletionRules.0.condition.ttlSeconds", -1),
    ("RayJob", "metadata.name", "Mario"),
    # What KubeRay's operator refuses.
    ("RayJob", "spec.clusterSelector", {"ray.io/cluster": "mario-dist"}),
    ("RayJob", "spec.shutdownAfterJobFinishes", True),
    ("RayJob", "spec.deletionStrategy.deletionRules.0.condition.jobDeploymentStatus", "Failed"),
    ("RayJob", "spec.deletionStrategy.deletionRules.0.policy", "DeleteWorkers"),
    ("RayJob", "spec.deletionStrategy.onSuccess", {"policy": "DeleteCluster"}),
    ("RayJob", CLUSTER, None),
    ("RayJob", f"{HEAD}.template.spec.restartPolicy", "Always"),
    ("RayJob", f"{LEARNER}.rayStartParams.num-gpus", "1"),
    ("RayJob", f"{CLUSTER}.rayVersion", "2.51.0"),
    ("RayJob", f"{CLUSTER}.rayVersion", None),
    # Kubernetes' own.
    ("StatefulSet", "spec.volumeClaimTemplate", []),
    ("StatefulSet", "spec.template.spec.containers.0.livenessProb", {}),
    ("Deployment", "spec.selector", None),
    ("Deployment", "spec.replicas", "1"),
    ("NetworkPolicy", "spec.podSelectors", {}),
    ("PersistentVolumeClaim", "spec.accessMode", "ReadWriteOnce"),
]


@pytest.mark.parametrize(("kind", "path", "value"), MISFITS)
def test_a_mistake_does_not_fit(kind: str, path: str, value: Any) -> None:
    manifests = built("dev-cluster" if kind == "RayCluster" else "dev")
    manifest = deepcopy(next(m for m in manifests if m["kind"] == kind))
    assert misfits(manifest) == []
    put(manifest, path, value)
    assert misfits(manifest) != []


def test_a_job_is_no_cluster() -> None:
    assert misfits({**one(built("dev"), "RayJob"), "kind": "RayCluster"}) != []


def test_kuberays_schema_says_where_it_is_from() -> None:
    source = json.loads((ROOT / "tests/data/k8s/kuberay-v1.json").read_text())["source"]
    assert source["repository"] == "ray-project/kuberay"
    assert re.fullmatch(r"[0-9a-f]{40}", source["commit"])
    assert f"KubeRay {source['version']}" in README
