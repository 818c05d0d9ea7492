"""`ray up` and the head's autoscaler with the files of cluster/, a recorder in place of ssh and Docker."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import yaml
from ray.autoscaler._private import commands
from ray.autoscaler._private.autoscaler import StandardAutoscaler
from ray.autoscaler._private.aws import node_provider as aws_nodes
from ray.autoscaler._private.load_metrics import LoadMetrics
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.core.generated.instance_manager_pb2 import Instance

Config = dict[str, Any]

# Ray's own: how it takes the time, and files of its provider for one's own machines that it leaves open.
RAYS_WARNINGS = [
    pytest.mark.filterwarnings(r"ignore:datetime\.datetime\.utcnow:DeprecationWarning:ray\.autoscaler\."),
    pytest.mark.filterwarnings(
        r"ignore:.*/ray/cluster-mario-dist\.state:pytest.PytestUnraisableExceptionWarning",
    ),
]

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
NAMES = ("aws", "gcp", "local")
TEXTS = {name: (CLUSTER / f"{name}.yaml").read_text() for name in NAMES}
POLICIES = {name: (CLUSTER / f"iam/{name}.json").read_text() for name in ("head", "node", "trust")}
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
README = (CLUSTER / "README.md").read_text()
FILLED = {
    "FILL_IN_REGISTRY": "registry.example/team",
    "FILL_IN_BUCKET": "example-bucket",
    "FILL_IN_PROJECT": "example-project",
    "FILL_IN_IMAGE": "projects/example-project/global/images/example",
    "FILL_IN_STORAGE": "file:///shared",
    "FILL_IN_USER": "ubuntu",
    "ami-FILL_IN": "ami-0123456789abcdef0",
    "sg-FILL_IN": "sg-0123456789abcdef0",
}


def changed(text: str, old: str, new: str) -> str:
    """``text`` with a mistake in it."""
    assert old in text
    return text.replace(old, new)


def filled(text: str, **others: str) -> str:
    """As a person fills it in."""
    for placeholder, value in {**FILLED, **others}.items():
        text = text.replace(placeholder, value)
    return text


def prepared(text: str) -> Config:
    """What Ray makes of the file, checked by Ray."""
    config: Config = prepare_config(yaml.safe_load(filled(text)))
    validate_config(config)
    return config


def node_types(config: Config) -> dict[str, Config]:
    types: dict[str, Config] = config["available_node_types"]
    return types


# `ray up`, with a recorder in place of ssh and Docker.


@dataclass
class Machine:
    """Takes the commands that the launcher would run over ssh, and answers what a fresh machine does."""

    DEVNULL = subprocess.DEVNULL
    host: list[str] = field(default_factory=list)
    container: list[str] = field(default_factory=list)
    bootstrap: Config = field(default_factory=dict)
    """What the launcher puts onto the head for the autoscaler there."""

    def check_call(self, command: list[str], **_: Any) -> int:
        if command[0] == "rsync":
            if "ray_bootstrap_config" in command[-1]:
                self.bootstrap = json.loads(Path(command[-2]).read_text())
            return 0
        script = typed(shlex.split(command[-1])[0])
        if script.startswith("docker exec"):
            self.container.append(typed(shlex.split(shlex.split(script)[-1])[-1]))
        else:
            self.host.append(script)
        return 0

    def check_output(self, command: list[str]) -> bytes:
        answers = {
            ".Config.Env": json.dumps([f"HOME={image_home()}"]),
            "printenv HOME": image_home(),
            "command -v docker": "/usr/bin/docker",
            "/proc/meminfo": "MemAvailable: 16000000 kB",
            ".Runtimes": "map[nvidia:{nvidia-container-runtime}]",
        }
        return next((answer for part, answer in answers.items() if part in command[-1]), "").encode()

    def docker_run(self) -> list[str]:
        (command,) = [script for script in self.host if script.startswith("docker run")]
        return shlex.split(command)

    def ray_start(self) -> str:
        """The command in the container that starts Ray."""
        (command,) = [script for script in self.container if "ray start" in script]
        return command


def typed(script: str) -> str:
    """The command itself in what the launcher wraps around it for a login shell."""
    found = re.search(r"&& \((.*)\)\s*$", script, re.DOTALL)
    return found[1].strip() if found else script


def image_home() -> str:
    """As Docker tells it of the image; Ray takes /root where the image does not say."""
    found = re.search(r"\bHOME=(\S+)", DOCKERFILE)
    return found[1] if found else "/root"


def ray_up(config: Config, provider: Any) -> Machine:
    head = Machine()
    commands.get_or_create_head_node(
        config, "cluster.yaml", False, False, True, None, _provider=provider, _runner=head
    )
    return head


def ray_up_older(config: Config, provider: Any) -> Machine:
    """With Ray's autoscaler before version 2, which README.md has people take but on AWS."""
    with patch.dict(os.environ, RAY_UP_enable_autoscaler_v2="0"):
        head = ray_up(config, provider)
    assert "RAY_enable_autoscaler_v2" not in head.ray_start()
    return head


def autoscaler(head: Machine, person: Path) -> FileConfigReader:
    """The configuration as the head's autoscaler reads it; what is on the head is in this home here."""
    config = deepcopy(head.bootstrap)
    (person / "ray_bootstrap_key.pem").write_text("a key")
    config["file_mounts"] = {
        mount: str(person / ".config/mario-dist/secrets") for mount in config["file_mounts"]
    }
    file = person / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(config))
    return FileConfigReader(str(file), skip_content_hash=False)


def launch(adapter: NodeProviderAdapter, node_type: str) -> None:
    adapter._launch_nodes_by_type(node_type, 1, "request")
    errors = adapter.poll_errors()
    assert not errors, errors[0].__cause__


class Fleet:
    """Takes the commands for several machines, and hands them to each by its address."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}

    def check_call(self, command: list[str], **_: Any) -> int:
        return self._machine(command).check_call(command)

    def check_output(self, command: list[str]) -> bytes:
        return self._machine(command).check_output(command)

    def _machine(self, command: list[str]) -> Machine:
        (address,) = {found[1] for word in command if (found := re.match(r"ubuntu@([\d.]+)", word))}
        return self.machines.setdefault(address, Machine())


def older_autoscaler(person: Path, runner: Any = None) -> StandardAutoscaler:
    file = str(person / "ray_bootstrap_config.yaml")
    return StandardAutoscaler(
        file,
        LoadMetrics(),
        MagicMock(),
        "session",
        max_failures=0,
        process_runner=runner,
        update_interval_s=0,
    )


def join_all(provider: Any, person: Path) -> dict[str, Machine]:
    """What it runs on the machines that are there, by address."""
    fleet = Fleet()
    old = older_autoscaler(person, fleet)
    old.provider = provider
    old.update()
    for updater in old.updaters.values():
        updater.join(timeout=20)
        assert updater.exitcode == 0
    return fleet.machines


def join(reader: FileConfigReader, provider: Any, node_type: str, node: str) -> Machine:
    """What the autoscaler on the head runs on a new machine."""
    worker = Machine()
    installer = RayInstaller(provider, reader.get_cached_autoscaling_config(), process_runner=worker)
    installer.install_ray(Instance(instance_type=node_type, cloud_instance_id=node), "10.0.0.10")
    return worker


@contextmanager
def at_home(home: Path) -> Iterator[Path]:
    """A home with the secrets in it, and nothing in the environment that would change what Ray does."""
    secrets = home / ".config/mario-dist/secrets"
    secrets.mkdir(parents=True)
    (secrets / "auth_token").write_text("0123")
    (secrets / "env").write_text("")
    (home / ".ssh").mkdir()
    (home / ".ssh/mario-dist").write_text("a key")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("HOME", "TMPDIR", "RAY_TMPDIR"):
            patched.setenv(name, str(home))
        patched.setenv("USER", "somebody")
        patched.setenv("RAY_UP_enable_autoscaler_v2", "1")
        patched.setattr(aws_nodes, "TAG_BATCH_DELAY", 0)
        yield home
