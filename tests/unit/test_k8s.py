"""k8s/: as far as it can be checked where there is no Kubernetes."""

import importlib.metadata
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement
from ray.autoscaler._private.kuberay import autoscaling_config
from referencing import Registry, Resource
from support.commands import Result

from mario_dist.cli.config import read_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "k8s/README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OVERLAYS = ("dev", "gpu", "dev-cluster", "gpu-cluster")
VERSIONS = ("1.30", "1.37")  # the oldest that README names, and the newest that kubernetes-validate knows
COMPONENT = "app.kubernetes.io/component"
RAY_NODES = ("head", "learner", "rollout")

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


# Schemas: Kubernetes' from kubernetes-validate, KubeRay's from tests/data/k8s, both without unknown fields.


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


CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec"
LEARNER = f"{CLUSTER}.workerGroupSpecs.0"
RAY = f"{HEAD}.template.spec.containers.0"
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


# Pods: who may do what, and what they may take.


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


def ports(pod: Pod) -> set[int]:
    return {port["containerPort"] for container in pod.containers for port in container.get("ports", [])}


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


# What is referred to.


def documented_secrets() -> dict[str, set[str]]:
    """The keys of each Secret that README's commands make."""
    text = README.replace("\\\n", " ")
    commands = re.findall(r"create secret generic (\S+)(.*)", text)
    return {name: set(re.findall(r"--from-literal=([\w.-]+)=", options)) for name, options in commands}


def dangling(manifests: list[Manifest]) -> list[str]:
    """References to what is nowhere."""
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests} | {("ConfigMap", "kube-root-ca.crt")}
    secrets = documented_secrets()
    wanted: set[tuple[str, str]] = set()
    keys: set[tuple[str, str]] = {(cluster_of(ray_of(manifests))["authOptions"]["secretName"], "auth_token")}
    endpoints: set[tuple[str, int]] = set()
    for manifest in manifests:
        if manifest["kind"] == "StatefulSet":
            wanted.add(("Service", manifest["spec"]["serviceName"]))
    for pod in pods(manifests):
        wanted.add(("ServiceAccount", pod.spec["serviceAccountName"]))
        wanted |= {("PersistentVolumeClaim", name) for name in beneath(pod.spec, "claimName")}
        wanted |= {("ConfigMap", source["name"]) for source in beneath(pod.spec, "configMap", "configMapRef")}
        volumes = [v["name"] for v in pod.spec.get("volumes", [])]
        for container in pod.containers:
            claims = [m["name"] for m in mounts(container) if m["name"] not in volumes]
            wanted |= {("volume", name) for name in claims if (pod.component, name) != ("postgres", "data")}
            defined: list[str] = []
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    keys.add((reference["name"], reference["key"]))
                value = variable.get("value", "")
                wanted |= {
                    ("variable", name) for name in re.findall(r"\$\((\w+)\)", value) if name not in defined
                }
                endpoints |= {(h, int(p)) for h, p in re.findall(r"(?:@|http://)([a-z-]+):(\d+)", value)}
                defined.append(variable["name"])
    served = {
        (m["metadata"]["name"], p["port"])
        for m in manifests
        if m["kind"] == "Service"
        for p in m["spec"]["ports"]
    }
    found = [f"{kind} {name}" for kind, name in wanted - there]
    found += [f"Secret {name} {key}" for name, key in keys if key not in secrets.get(name, set())]
    return sorted(found + [f"{host}:{port}" for host, port in endpoints - served])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_is_referred_to_is_there(overlay: str) -> None:
    assert dangling(built(overlay)) == []


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (f"{RAY}.env.0.valueFrom.secretKeyRef.name", "postgres", "Secret postgres postgres-password"),
        (f"{RAY}.env.0.valueFrom.secretKeyRef.key", "password", "Secret mario-dist password"),
        (f"{CLUSTER}.authOptions.secretName", "token", "Secret token auth_token"),
        (f"{RAY}.env.0.name", "PASSWORD", "variable POSTGRES_PASSWORD"),
        (f"{RAY}.env.3.value", "http://mlflow:5001", "mlflow:5001"),
        (f"{RAY}.env.1.value", "postgresql://mario:x@db:5432/mario", "db:5432"),
        (f"{HEAD}.template.spec.serviceAccountName", "ray", "ServiceAccount ray"),
        (
            f"{HEAD}.template.spec.volumes.1.persistentVolumeClaim.claimName",
            "run",
            "PersistentVolumeClaim run",
        ),
        (f"{RAY}.volumeMounts.1.name", "run", "volume run"),
        (f"{HEAD}.template.spec.volumes.2.projected.sources.1.configMap.name", "ca", "ConfigMap ca"),
    ],
)
def test_a_reference_to_nothing_is_found(path: str, value: str, found: str) -> None:
    manifests = built("dev")
    put(one(manifests, "RayJob"), path, value)
    assert dangling(manifests) == [found]


def test_no_secret_is_written_down() -> None:
    for file in (ROOT / "k8s").rglob("*.*"):
        text = file.read_text()
        assert not re.search(r"^kind: Secret$|stringData:|secretGenerator", text, re.MULTILINE)
        assert set(re.findall(r"://\w+:([^@\s]+)@", text)) <= {"$(POSTGRES_PASSWORD)"}
    made = re.findall(r"--from-literal=[\w.-]+=(\S+(?: \S+)*?)(?= --|$)", README, re.MULTILINE)
    assert len(made) == 2
    assert all(re.fullmatch(r'"\$\(openssl rand -hex \d+\)"', value) for value in made)


# Who may talk to whom.


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    lists = selector.get("matchExpressions", [])
    assert all(e["operator"] == "In" for e in lists)
    return set(wanted) <= set(labels.items()) and all(labels.get(e["key"]) in e["values"] for e in lists)


def policies(manifests: list[Manifest]) -> list[Manifest]:
    return [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]


def permitted(manifests: list[Manifest], way: str, pod: Pod, other: Pod, port: int) -> bool:
    """Whether the policies let ``pod`` have this connection with ``other``: both in one namespace."""
    about = [
        p for p in policies(manifests) if way in p["policyTypes"] and matches(p["podSelector"], pod.labels)
    ]
    peers = {"Ingress": "from", "Egress": "to"}[way]
    return not about or any(
        any(
            "namespaceSelector" not in peer and matches(peer["podSelector"], other.labels)
            for peer in rule[peers]
        )
        and ("ports" not in rule or port in [p["port"] for p in rule["ports"]])
        for policy in about
        for rule in policy.get(way.lower(), [])
        if peers in rule
    )


def connections(manifests: list[Manifest]) -> set[tuple[str, str, int]]:
    """(from, to, port) of all that is possible; Ray's nodes have port 1, which is none that has a name."""
    everyone = pods(manifests)
    known = {1}.union(*map(ports, everyone))
    return {
        (a.component, b.component, port)
        for a in everyone
        for b in everyone
        for port in known
        if a.component != b.component
        if permitted(manifests, "Egress", a, b, port) and permitted(manifests, "Ingress", b, a, port)
    }


EXPECTED = {("head", "postgres", 5432), ("head", "mlflow", 5000), ("mlflow", "postgres", 5432)}
AMONG_RAY = {
    (a, b, port) for a in RAY_NODES for b in RAY_NODES for port in (1, 5000, 5432, 6379, 8080, 8265) if a != b
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_may_talk_to_whom(overlay: str) -> None:
    submitter = {("submitter", "head", 8265)} if ray_of(built(overlay))["kind"] == "RayJob" else set()
    assert connections(built(overlay)) == EXPECTED | AMONG_RAY | submitter


@pytest.mark.parametrize("name", ["ray", "head", "mlflow", "postgres", "submitter"])
def test_every_policy_matters(name: str) -> None:
    manifests = built("dev")
    before = connections(manifests)
    manifests.remove(one(manifests, "NetworkPolicy", name))
    assert connections(manifests) != before


def test_a_pod_that_no_policy_names_is_alone() -> None:
    manifests = built("dev")
    stranger, *others = Pod("stranger", {COMPONENT: "stranger"}, {}), *pods(manifests)
    ways = [(way, other) for way in ("Ingress", "Egress") for other in others]
    assert not any(permitted(manifests, way, stranger, other, 1) for way, other in ways)
    manifests.remove(one(manifests, "NetworkPolicy", "nothing-but"))
    assert any(permitted(manifests, way, stranger, other, 1) for way, other in ways)


def strays(manifests: list[Manifest]) -> list[str]:
    """Selectors of pods and ports that are not."""
    everyone, found = pods(manifests), []
    for manifest in manifests:
        if manifest["kind"] == "Service":
            chosen = [p for p in everyone if matches({"matchLabels": manifest["spec"]["selector"]}, p.labels)]
            names = {port["name"] for p in chosen for c in p.containers for port in c.get("ports", [])}
            found += [port["name"] for port in manifest["spec"]["ports"] if port["targetPort"] not in names]
        if manifest["kind"] != "NetworkPolicy":
            continue
        policy, name = manifest["spec"], manifest["metadata"]["name"]
        mine = [p for p in everyone if matches(policy["podSelector"], p.labels)]
        found += [] if mine else [f"{name} is for no pod"]
        for way, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy.get(way, []):
                others = [peer for peer in rule.get(peers, []) if "namespaceSelector" not in peer]
                theirs = [p for peer in others for p in everyone if matches(peer["podSelector"], p.labels)]
                found += [f"{name} lets nobody in"] if others and not theirs else []
                if way == "ingress" or theirs:
                    open_at = set().union(*map(ports, mine if way == "ingress" else theirs))
                    asked = {port["port"] for port in rule.get("ports", [])}
                    found += [f"{name} has no port {port}" for port in asked - open_at]
    return found


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_selectors_select(overlay: str) -> None:
    assert strays(built(overlay)) == []


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("NetworkPolicy", "postgres", "spec.podSelector", {"matchLabels": {COMPONENT: "postgresql"}}),
        ("NetworkPolicy", "mlflow", "spec.ingress.0.ports.0.port", 8000),
        ("NetworkPolicy", "submitter", "spec.egress.0.to.0.podSelector", {"matchLabels": {COMPONENT: "ray"}}),
        ("Service", "mlflow", "spec.selector", {COMPONENT: "ml"}),
        ("Service", "postgres", "spec.ports.0.targetPort", "sql"),
    ],
)
def test_a_selector_of_nothing_is_found(kind: str, name: str, path: str, value: Any) -> None:
    manifests = built("dev")
    put(one(manifests, kind, name), path, value)
    assert strays(manifests) != []


def test_kuberays_own_labels_are_left_alone() -> None:
    """Its head service selects by these."""
    for pod in pods(built("gpu")):
        assert pod.component not in RAY_NODES or set(pod.labels) == {COMPONENT}


# What ties the manifests to the program.


def ray_requirement() -> Requirement:
    (found,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray"]
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_of_this_version_and_rays(overlay: str) -> None:
    version = cluster_of(ray_of(built(overlay)))["rayVersion"]
    assert ray_requirement().specifier.contains(version)
    assert version.split(".")[:2] == importlib.metadata.version("ray").split(".")[:2]
    tag = f"{PROJECT['version']}-ray{'.'.join(version.split('.')[:2])}"
    for pod in pods(built(overlay)):
        gpu = "nvidia.com/gpu" in json.dumps(pod.spec["containers"])
        wanted = {"postgres": "postgres:17"}.get(pod.component, f"mario-dist:{tag}{'-gpu' if gpu else ''}")
        assert [container["image"] for container in pod.spec["containers"]] == [wanted]
        assert gpu == (overlay.startswith("gpu") and pod.component == "learner")
    assert f"-t mario-dist:{tag} " in README
    assert f"-t mario-dist:{tag}-gpu " in README


def read_variables() -> set[str]:
    """The variables that the program, MLflow, Ray and PostgreSQL's image read."""
    texts = [file.read_text() for file in (ROOT / "mario_dist").rglob("*.py")]
    names = {name for text in texts for name in re.findall(r"""["'](MARIO_DIST_\w+)["']""", text)}

    def place(package: str) -> Path:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent

    for file in ("environment_variables.py", "utils/cli_args.py", "cli/__init__.py"):
        names |= set(re.findall(r'"(MLFLOW_\w+)"', (place("mlflow") / file).read_text()))
    supervisor = place("ray") / "dashboard/modules/job/job_supervisor.py"
    names |= set(re.findall(r'"(RAY_JOB_\w+)"', supervisor.read_text()))
    # Ray's core reads RAY_<setting>.
    core = (place("ray") / "core/src/ray/gcs/gcs_server").read_bytes()
    settings = rb"health_check_(?:period_ms|timeout_ms|failure_threshold)"
    names |= {f"RAY_{name.decode()}" for name in re.findall(settings, core)}
    return names | {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "PGDATA"}


def test_every_variable_is_one_that_is_read() -> None:
    known = read_variables()
    assert {"MARIO_DIST_RUN", "MLFLOW_TRACKING_URL", "RAY_health_check_timeout"}.isdisjoint(known)
    for overlay in OVERLAYS:
        for pod in pods(built(overlay)):
            assert {v["name"] for c in pod.containers for v in c.get("env", [])} <= known


def entrypoint(overlay: str) -> list[str]:
    """The words of the program that a RayJob runs."""
    shell, option, script = shlex.split(one(built(overlay), "RayJob")["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")  # whoever submits has a shell of its own
    program, marker = re.split(r"\s+&&\s+", script)
    # A head that goes leaves the same mark, and stops the program by its name.
    stop = at(one(built(overlay), "RayJob"), f"{RAY}.lifecycle.preStop.exec.command")[-1]
    assert marker.startswith("test ! -e ")
    assert stop.startswith(f"touch {marker.removeprefix('test ! -e ')}; pkill -x {program.split()[0]}; ")
    return program.split()


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_the_job_is_a_command_of_the_program(overlay: str, here: Callable[..., Result]) -> None:
    program, command, *words = entrypoint(overlay)
    assert {program: "mario_dist.cli.main:main"} == PROJECT["scripts"]
    options = dict(re.findall(r"(--[\w-]+) (\S+)", " ".join(words)))
    assert set(options) == {"--address", "--run-id"}
    arguments = [w for w in words if not w.startswith("--") and w not in options.values()]
    config = read_config(arguments)
    cluster = cluster_of(one(built(overlay), "RayJob"))
    learner, rollout = cluster["workerGroupSpecs"]
    assert (config.learner.device == "cuda") == ("nvidia.com/gpu" in json.dumps(learner))
    # All actors find room at last.
    cpus = quantity(at(rollout, "template.spec.containers.0.resources.limits.cpu"))
    assert 0 < config.rollout.actors <= rollout["maxReplicas"] * cpus
    done = here(command, "--help")
    assert all(option in done.stdout for option in options)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_autoscaler_reads_the_groups_as_meant(overlay: str) -> None:
    manifest = ray_of(built(overlay))
    cluster = {"metadata": manifest["metadata"], "spec": cluster_of(manifest)}
    types = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    found = {name: dict(group["resources"]) for name, group in types.items()}
    assert all(resources.pop("memory") > 2e9 for resources in found.values())
    cpus = {name: resources.pop("CPU") for name, resources in found.items()}
    assert cpus.pop("headgroup") == 0
    assert all(number > 0 for number in cpus.values())
    gpu = {"GPU": 1} if overlay.startswith("gpu") else {}
    assert found == {"headgroup": {}, "learner": {"learner": 1, **gpu}, "rollout": {}}
    assert types["learner"]["min_workers"] == 1
    assert types["rollout"]["max_workers"] > types["rollout"]["min_workers"] > 0


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_a_driver_that_dies_is_tried_again_and_goes_on(overlay: str) -> None:
    job = one(built(overlay), "RayJob")["spec"]
    assert job["backoffLimit"] > 0
    assert "--run-id" in entrypoint(overlay)
    rules = {next(iter(rule["condition"].items())): rule for rule in job["deletionStrategy"]["deletionRules"]}
    assert set(rules) == {
        ("jobStatus", "SUCCEEDED"),
        ("jobStatus", "FAILED"),
        ("jobDeploymentStatus", "Failed"),
    }
    # What it goes on from outlives the cluster: a claim, or object storage.
    head = at(job, "rayClusterSpec.headGroupSpec.template.spec")
    environment = {v["name"]: v.get("value") for v in head["containers"][0]["env"]}
    place = environment["MARIO_DIST_RUNS"]
    (runs,) = [m["name"] for m in mounts(head["containers"][0]) if m["mountPath"] == place]
    claimed = any(v["name"] == runs and "persistentVolumeClaim" in v for v in head["volumes"])
    assert claimed != ("MARIO_DIST_STORAGE" in environment)
    # SIGTERM: the checkpoint has its time.
    assert head["terminationGracePeriodSeconds"] > int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 120


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_the_standing_cluster_is_the_jobs(overlay: str) -> None:
    assert one(built(f"{overlay}-cluster"), "RayCluster")["spec"] == cluster_of(one(built(overlay), "RayJob"))


def test_servers_are_those_of_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    manifests = built("dev")
    mlflow = at(one(manifests, "Deployment"), "spec.template.spec.containers.0")
    theirs = compose["mlflow"]
    assert [*mlflow["command"], *mlflow["args"]] == [*theirs["entrypoint"], *theirs["command"]]
    ours = {v["name"]: v["value"] for v in mlflow["env"] if "value" in v}
    without_password = re.compile(r":\$[^@]*@")
    assert {k: without_password.sub("", v) for k, v in ours.items()} == {
        k: without_password.sub("", v) for k, v in theirs["environment"].items()
    }
    postgres = at(one(manifests, "StatefulSet"), "spec.template.spec.containers.0")
    assert postgres["image"] == compose["postgres"]["image"]
    assert postgres["readinessProbe"]["exec"]["command"] == compose["postgres"]["healthcheck"]["test"][1:]
    (sql,) = one(manifests, "ConfigMap")["data"].values()
    assert sql in (ROOT / "docker/create-mlflow-db.sql").read_text()


def commands() -> Iterator[str]:
    for block in re.findall(r"```\n(.*?)```", README, re.DOTALL):
        yield from (line.split("#")[0].strip() for line in block.splitlines())


def test_readmes_commands_name_what_is_there() -> None:
    text = "\n".join(commands())
    assert set(re.findall(r"k8s/overlays/([\w-]+)", text)) <= set(OVERLAYS)
    assert all((ROOT / place).exists() for place in re.findall(r"-[fk] (k8s/\S+)", text))
    names = {m["metadata"]["name"] for o in OVERLAYS for m in built(o)} | {"mario-dist-head-svc"}
    assert set(re.findall(r"(?:svc|job|rayjob|deploy|sts|pvc)/([\w-]+)", text)) <= names
