"""cluster/*.yaml: the containers, and Ray in them, as the launcher starts them from every file."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from ray.autoscaler.sdk import get_docker_host_mount_location
from support.clouds import Aws, Gcp, Local
from support.launcher import DOCKERFILE, RAYS_WARNINGS, Machine, image_home

pytestmark = RAYS_WARNINGS


def worker_of(launched: Any) -> Machine:
    worker: Machine = launched.worker if isinstance(launched, Local) else launched.rollout
    return worker


def test_containers_are_confined(launched: Any) -> None:
    for machine in (launched.head, worker_of(launched)):
        run = machine.docker_run()
        assert {"--cap-drop=ALL", "--security-opt=no-new-privileges", "--init"} <= set(run)
        assert "--privileged" not in run
        assert run[-1] == "bash"
        assert "--net=host" in run  # so that one hop is enough for a machine's credentials


def test_only_the_learner_gets_the_gpu_and_its_image(aws: Aws, gcp: Gcp) -> None:
    for machines in (aws, gcp):
        assert "--gpus=all" in machines.learner.docker_run()
        assert machines.learner.docker_run()[-2].endswith("-gpu")
        for machine in (machines.head, machines.rollout):
            assert "--gpus=all" not in machine.docker_run()
            assert not machine.docker_run()[-2].endswith("-gpu")


def test_secrets_lie_where_the_container_looks(launched: Any) -> None:
    for machine in (launched.head, worker_of(launched)):
        run = machine.docker_run()
        (mount,) = [option for option in run if option.endswith(":/home/mario/secrets")]
        host = mount.split(":")[0].replace("//", "/")
        assert host.startswith(get_docker_host_mount_location("mario-dist"))
        assert f"--env-file={host}/env" in run
        assert "--env=RAY_AUTH_TOKEN_PATH=/home/mario/secrets/auth_token" in run
        assert "--env=RAY_AUTH_MODE=token" in run


def start_options() -> set[str]:
    """The options of `ray start`; importing them would take longer than all tests of this file."""
    spec = importlib.util.find_spec("ray.scripts.scripts")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    (section,) = re.findall(
        r"\n@cli\.command\([^)]*\)\n((?:(?!\n@cli\.command).)*?)\ndef start\(", source, re.DOTALL
    )
    return set(re.findall(r'"(--[a-z-]+)"', section))


def test_ray_start_knows_every_option(launched: Any) -> None:
    for machine in (launched.head, worker_of(launched)):
        given = set(re.findall(r"--[a-z-]+", machine.ray_start()))
        assert len(given) >= 2
        assert given <= start_options()
    assert {"--dashboard-hosts", "--auto-scaling-config"}.isdisjoint(start_options())


def test_the_dashboard_is_not_open_to_the_network(launched: Any) -> None:
    assert "--dashboard-host=127.0.0.1" in launched.head.ray_start()
    assert "--autoscaling-config=/home/mario/ray_bootstrap_config.yaml" in launched.head.ray_start()
    assert "0.0.0.0" not in "".join(launched.head.docker_run() + launched.head.container)


def test_the_image_has_what_the_launcher_uses(launched: Any) -> None:
    assert image_home() == "/home/mario"
    for package in ("openssh-client", "rsync"):  # the head's autoscaler logs in to the workers
        assert re.search(rf"\b{package}\b", DOCKERFILE)
    assert "/etc/profile.d/" in DOCKERFILE  # login shells begin with a PATH of their own
    assert "ENTRYPOINT [" not in DOCKERFILE  # `docker run ... bash`
    assert re.search(r"useradd .*--uid 1000 .*\bmario\b", DOCKERFILE)
