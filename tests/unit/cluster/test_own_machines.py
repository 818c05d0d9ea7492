"""cluster/local.yaml: machines of one's own, which no cloud starts."""

import subprocess
from pathlib import Path

import pytest
from ray.autoscaler._private.local import node_provider as local_nodes
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from support.clouds import Local
from support.launcher import RAYS_WARNINGS, TEXTS, autoscaler, older_autoscaler, prepared

pytestmark = RAYS_WARNINGS


def started(command: str, address: str, folder: Path) -> list[str]:
    """What `ray` is given by ``command`` on the machine with this address."""
    for name, script in (("hostname", f"echo {address} 172.17.0.1"), ("ray", 'printf "%s\\n" "$@"')):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_one_machine_of_ones_own_is_the_learner(local: Local, tmp_path: Path) -> None:
    config = prepared(TEXTS["local"])
    given = {ip: started(local.worker.ray_start(), ip, tmp_path) for ip in config["provider"]["worker_ips"]}
    learners = [ip for ip, arguments in given.items() if '--resources={"learner":1}' in arguments]
    assert learners == ["192.0.2.11"]
    assert all("--resources={}" in arguments for ip, arguments in given.items() if ip not in learners)
    assert all("--address=192.0.2.10:6379" in arguments for arguments in given.values())


def test_only_the_older_autoscaler_knows_a_head_of_ones_own(
    local: Local, person: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this fails, README.md's advice can go."""
    monkeypatch.setenv(
        "RAY_TMPDIR", str(tmp_path)
    )  # the head has not got the state that lies where `ray up` ran
    reader = autoscaler(local.head, person)
    config = prepared(TEXTS["local"])
    provider = local_nodes.LocalNodeProvider(config["provider"], config["cluster_name"])
    assert NodeProviderAdapter(provider, reader).get_non_terminated() == {}
    older = older_autoscaler(person).provider
    assert older.non_terminated_nodes({"ray-node-type": "head"}) == [config["provider"]["head_ip"]]


def test_the_head_of_ones_own_computes_nothing(local: Local) -> None:
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(local.head.ray_start().split())
    assert f"--node-ip-address={prepared(TEXTS['local'])['provider']['head_ip']}" in local.head.ray_start()
