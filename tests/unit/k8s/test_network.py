"""k8s/: who may talk to whom, by the policies, and what services and policies select."""

from typing import Any

import pytest
from support.manifests import (
    COMPONENT,
    OVERLAYS,
    RAY_NODES,
    Manifest,
    Pod,
    built,
    one,
    pods,
    put,
    ray_of,
)


def ports(pod: Pod) -> set[int]:
    return {port["containerPort"] for container in pod.containers for port in container.get("ports", [])}


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


# What is selected.


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
