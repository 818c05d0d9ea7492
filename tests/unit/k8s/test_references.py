"""k8s/: whatever is referred to is there, and Secrets are nowhere but in README.md's commands."""

import re

import pytest
from support.manifests import (
    CLUSTER,
    HEAD,
    OVERLAYS,
    RAY,
    README,
    ROOT,
    Manifest,
    beneath,
    built,
    cluster_of,
    mounts,
    one,
    pods,
    put,
    ray_of,
)


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
