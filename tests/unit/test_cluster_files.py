"""cluster/: `ray up` with each file, as far as it goes without a cloud.

Ray's own launcher, bootstrap and node providers run against moto (AWS), a stand-in for Google's API, and a
recorder in place of ssh and Docker.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch
from urllib.parse import urlsplit

import boto3
import botocore.client
import botocore.session
import jsonschema
import moto
import pytest
import ray
import yaml
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator
from click import ClickException
from googleapiclient import discovery_cache
from httplib2 import Response
from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
from ray._raylet import AuthenticationTokenLoader
from ray.autoscaler._private import commands
from ray.autoscaler._private.autoscaler import StandardAutoscaler
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import node_provider as aws_nodes
from ray.autoscaler._private.aws import utils as aws_utils
from ray.autoscaler._private.gcp import config as gcp_config
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
from ray.autoscaler._private.load_metrics import LoadMetrics
from ray.autoscaler._private.local import node_provider as local_nodes
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.sdk import get_docker_host_mount_location
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.core.generated.instance_manager_pb2 import Instance
from ray.exceptions import AuthenticationError

Config = dict[str, Any]

# Ray's own: how it takes the time, and files of its provider for one's own machines that it leaves open.
pytestmark = [
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


# What Ray's schema says.


@pytest.mark.parametrize("name", NAMES)
def test_ray_takes_the_file(name: str) -> None:
    config = prepared(TEXTS[name])
    for commands_of in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[commands_of] == []  # Ray's defaults would install a nightly


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("aws", "idle_timeout_minutes:", "idle_timeout:"),
        ("aws", "resources: {learner: 1}", "resources: {learner: 0.5}"),
        ("aws", "worker_run_options:", "run_options:"),
        ("aws", "head_node_type: head", "head_node_type: haed"),
        ("aws", "max_workers: 17", "max_workers: 0"),
        ("gcp", "upscaling_speed:", "scaling_speed:"),
        ("gcp", "resources: {CPU: 8,", "resources: {CPU: eight,"),
        ("local", "rsync_filter:", "rsync_filters:"),
        ("local", "head_ip:", "head:"),
    ],
)
def test_ray_refuses_a_mistake(name: str, old: str, new: str) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError, ClickException)):
        prepared(changed(TEXTS[name], old, new))


# What AWS's own description of RunInstances says.


@pytest.fixture(scope="module")
def run_instances() -> Callable[[Config], str]:
    """What of a ``node_config`` AWS would not take, by the description that botocore carries."""
    session = botocore.session.get_session()
    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    enums = {"InstanceType": "InstanceType", "MarketType": "MarketType", "VolumeType": "VolumeType"}
    model = session.get_service_model("ec2")

    def errors(node_config: Config) -> str:
        parameters = {**node_config, "MinCount": 1, "MaxCount": 1}
        found = str(ParamValidator().validate(parameters, shape).generate_report())
        # The validator leaves enumerations to the server.
        for key, value in leaves(parameters):
            if key in enums and value not in model.shape_for(enums[key]).enum:
                found += f"{value} is no {key}"
        return found

    return errors


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield key, value


@pytest.mark.parametrize("node_type", ["head", "learner", "rollout"])
def test_aws_takes_every_node_config(node_type: str, run_instances: Callable[[Config], str]) -> None:
    assert run_instances(node_types(prepared(TEXTS["aws"]))[node_type]["node_config"]) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("MetadataOptions:", "MetaDataOptions:"),
        ("VolumeSize: 100", "VolumeSize: 100 GB"),
        ("Encrypted: true", "Encryption: true"),
        ("{Name: mario-dist-node}", "mario-dist-node"),
        ("MarketType: spot", "MarketType: sport"),
        ("c7a.4xlarge", "c7a.4xlrage"),
    ],
)
def test_aws_refuses_a_mistake(old: str, new: str, run_instances: Callable[[Config], str]) -> None:
    types = node_types(prepared(changed(TEXTS["aws"], old, new)))
    assert any(run_instances(node_type["node_config"]) for node_type in types.values())


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


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with the secrets in it, and nothing in the environment that would change what Ray does."""
    home = tmp_path_factory.mktemp("home")
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


# AWS: bootstrap and machines under moto.

REGION = "us-east-1"


def account(text: str = TEXTS["aws"]) -> Config:
    """Makes in moto what README.md has a person make; the file, filled in accordingly."""
    aws_utils.resource_cache.cache_clear()
    aws_utils.client_cache.cache_clear()
    aws_config._get_subnets_or_die.cache_clear()
    iam = boto3.client("iam", REGION)
    for role, policies in (("head", ("head", "node")), ("node", ("node",))):
        name = f"mario-dist-{role}"
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=POLICIES["trust"])
        for policy in policies:
            iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=filled(POLICIES[policy]))
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    group = boto3.client("ec2", REGION).create_security_group(
        GroupName="mario-dist", Description="mario-dist"
    )
    config: Config = yaml.safe_load(filled(text.replace("sg-FILL_IN", group["GroupId"])))
    return config


def few_instance_types(region: str, aws_credentials: Config | None = None) -> list[Config]:
    """Asked for all of them as Ray does, moto takes eight seconds."""
    names = [
        node_type["node_config"]["InstanceType"] for node_type in node_types(prepared(TEXTS["aws"])).values()
    ]
    found: list[Config] = boto3.client("ec2", region).describe_instance_types(InstanceTypes=names)[
        "InstanceTypes"
    ]
    return found


@dataclass
class Aws:
    config: Config
    head: Machine
    learner: Machine
    rollout: Machine
    instances: dict[str, list[Config]]
    asked_by_head: set[str]
    """What the head asked of AWS, as policies call it."""


@pytest.fixture(scope="module")
def aws(person: Path) -> Aws:
    with moto.mock_aws(), patch.object(aws_nodes, "list_ec2_instances", few_instance_types):
        config = commands._bootstrap_config(account(), no_config_cache=True)
        head = ray_up(config, aws_nodes.AWSNodeProvider(config["provider"], config["cluster_name"]))
        with asked() as asked_by_head:
            reader = autoscaler(head, person)
            provider = aws_nodes.AWSNodeProvider(config["provider"], config["cluster_name"])
            adapter = NodeProviderAdapter(provider, reader)
            for node_type in ("learner", "rollout", "rollout"):
                launch(adapter, node_type)
            nodes = {
                node_type: provider.non_terminated_nodes({"ray-user-node-type": node_type})
                for node_type in node_types(config)
            }
            workers = {name: join(reader, provider, name, nodes[name][0]) for name in ("learner", "rollout")}
            found = instances()
            adapter._v1_terminate_nodes(nodes["rollout"])
            assert provider.non_terminated_nodes({"ray-user-node-type": "rollout"}) == []
    return Aws(config, head, workers["learner"], workers["rollout"], found, set(asked_by_head))


class asked:
    """Notes every call of AWS in between, but those of the test itself."""

    def __enter__(self) -> list[str]:
        names: list[str] = []
        call = botocore.client.BaseClient._make_api_call

        def noted(client: Any, operation: str, parameters: Config) -> Any:
            names.append(f"{client.meta.service_model.service_name}:{operation}")
            return call(client, operation, parameters)

        self._patch = patch.object(botocore.client.BaseClient, "_make_api_call", noted)
        self._patch.start()
        return names

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


def instances() -> dict[str, list[Config]]:
    """The machines that moto has, by node type."""
    found: dict[str, list[Config]] = {}
    for reservation in boto3.client("ec2", REGION).describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            found.setdefault(tags["ray-user-node-type"], []).append(instance)
    return found


def test_aws_machines_are_as_the_file_says(aws: Aws) -> None:
    counts = {node_type: len(found) for node_type, found in aws.instances.items()}
    assert counts == {"head": 1, "learner": 1, "rollout": 2}
    spot = {
        node_type: [i.get("InstanceLifecycle") for i in found] for node_type, found in aws.instances.items()
    }
    assert spot == {"head": [None], "learner": [None], "rollout": ["spot"] * 2}
    for node_type, found in aws.instances.items():
        role = "head" if node_type == "head" else "node"
        for instance in found:
            assert instance["IamInstanceProfile"]["Arn"].endswith(f"/mario-dist-{role}")
            assert instance["MetadataOptions"]["HttpTokens"] == "required"
            assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["mario-dist"]


def test_aws_resources_are_those_of_the_instance_types(aws: Aws) -> None:
    """What `ray up` looked up; whole numbers of what the program asks for."""
    types = {name: node_type["resources"] for name, node_type in node_types(aws.config).items()}
    assert types["head"] == {"CPU": 0}
    assert {name: types["learner"][name] for name in ("CPU", "GPU", "learner")} == {
        "CPU": 8,
        "GPU": 1,
        "learner": 1,
    }
    assert types["rollout"]["CPU"] == 16
    assert "GPU" not in types["rollout"]
    for machine, resources in ((aws.head, types["head"]), (aws.rollout, types["rollout"])):
        override = re.search(r"RAY_OVERRIDE_RESOURCES='([^']*)'", machine.ray_start())
        assert override is not None
        assert json.loads(override[1]) == resources


def test_the_next_zone_is_taken_where_one_has_no_machines_left(person: Path) -> None:
    def full(client: Any, operation: str, parameters: Config) -> Any:
        if operation == "RunInstances" and parameters["SubnetId"] == subnets[0]:
            raise ClientError({"Error": {"Code": "InsufficientInstanceCapacity", "Message": ""}}, operation)
        return call(client, operation, parameters)

    call = botocore.client.BaseClient._make_api_call
    with moto.mock_aws():
        config = aws_config.bootstrap_aws(prepare_config(account()))
        node_config = node_types(config)["rollout"]["node_config"]
        subnets = node_config["SubnetIds"]
        assert len(subnets) == len(config["provider"]["availability_zone"].split(","))
        provider = aws_nodes.AWSNodeProvider(config["provider"], config["cluster_name"])
        with patch.object(botocore.client.BaseClient, "_make_api_call", full):
            provider.create_node(node_config, {"ray-user-node-type": "rollout"}, 1)
        ((instance,),) = instances().values()
    assert instance["SubnetId"] == subnets[1]


def test_rollouts_have_several_zones_of_the_region() -> None:
    provider = prepared(TEXTS["aws"])["provider"]
    zones = provider["availability_zone"].split(",")
    assert len(set(zones)) >= 2
    assert all(re.fullmatch(re.escape(provider["region"]) + "[a-z]", zone) for zone in zones)
    assert provider["region"] == REGION


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("sg-FILL_IN", "sg-00000000000000000", "Failed to detect a security group"),
        ("us-east-1a,us-east-1b,us-east-1c", "eu-west-1a", "No usable subnets matching availability zone"),
        ("  # Ray makes a key pair", "  ssh_private_key: ~/.ssh/mario-dist\n  # ", "`KeyName` missing"),
    ],
)
def test_the_bootstrap_refuses_a_mistake(
    old: str, new: str, said: str, person: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with moto.mock_aws():
        config = account(changed(TEXTS["aws"], old, new))
        with pytest.raises((AssertionError, ClickException)):
            aws_config.bootstrap_aws(prepare_config(config))
    assert said in "".join(capsys.readouterr())


def test_aws_refuses_a_profile_that_is_not_there(person: Path) -> None:
    with moto.mock_aws():
        config = account(changed(TEXTS["aws"], "mario-dist-node}", "mario-dist-nodes}"))
        config = aws_config.bootstrap_aws(prepare_config(config))
        provider = aws_nodes.AWSNodeProvider(config["provider"], config["cluster_name"])
        with pytest.raises(NodeLaunchException, match="Instance profile mario-dist-nodes not found"):
            provider.create_node(node_types(config)["learner"]["node_config"], {}, 1)


# What the roles may do.


def granted(policy: str) -> set[str]:
    """Every action that a policy allows."""
    statements = json.loads(policy)["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return {action for statement in statements for action in as_list(statement["Action"])}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_the_head_may_do_what_it_did_and_no_more(aws: Aws) -> None:
    # AWS asks for PassRole where RunInstances names a profile.
    assert granted(POLICIES["head"]) == aws.asked_by_head | {"iam:PassRole"}


def too_much(policy: str) -> list[str]:
    """Statements that reach further than one cluster and one prefix."""
    found = []
    for statement in json.loads(policy)["Statement"]:
        actions, resources = as_list(statement["Action"]), as_list(statement["Resource"])
        if any("*" in action for action in actions):
            found.append(f"{actions} has a wildcard")
        if "*" in resources and actions != ["ec2:DescribeInstances"]:
            found.append(f"{actions} on everything")
        conditions = statement.get("Condition", {})
        if any(resource.endswith(":instance/*") for resource in resources) and not conditions:
            found.append(f"{actions} on every machine")
        if "s3:ListBucket" in actions and "s3:prefix" not in conditions.get("StringLikeIfExists", {}):
            found.append("lists the whole bucket")
        if (
            any(re.fullmatch(r"arn:aws:s3:::[^/]*(/\*)?", r) for r in resources)
            and "s3:ListBucket" not in actions
        ):
            found.append("takes the whole bucket")
    return found


@pytest.mark.parametrize("name", ["head", "node"])
def test_no_policy_reaches_further_than_this_cluster(name: str) -> None:
    assert too_much(POLICIES[name]) == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("head", '"ec2:RunInstances"', '"ec2:*"'),
        ("head", '"arn:aws:iam::*:role/mario-dist-node"', '"*"'),
        (
            "head",
            '"Condition": {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "mario-dist"}}',
            '"Condition": {}',
        ),
        ("node", "FILL_IN_BUCKET/mario-dist/*", "FILL_IN_BUCKET/*"),
        ("node", "s3:prefix", "s3:max-keys"),
        ("node", '"s3:GetObject"', '"s3:*"'),
    ],
)
def test_a_policy_that_reaches_further_is_found(name: str, old: str, new: str) -> None:
    assert too_much(changed(POLICIES[name], old, new)) != []


def test_policies_name_what_the_file_names() -> None:
    config = prepared(TEXTS["aws"])
    types = node_types(config)
    head, node = (json.loads(filled(POLICIES[name]))["Statement"] for name in ("head", "node"))
    conditions = {
        key: value for s in head for key, value in s.get("Condition", {}).get("StringEquals", {}).items()
    }
    assert conditions["aws:RequestTag/ray-cluster-name"] == config["cluster_name"]
    assert conditions["aws:ResourceTag/ray-cluster-name"] == config["cluster_name"]
    workers = [types[name]["node_config"] for name in ("learner", "rollout")]
    assert set(conditions["ec2:InstanceType"]) == {worker["InstanceType"] for worker in workers}
    (passed,) = [s["Resource"].rpartition("/")[2] for s in head if s["Action"] == "iam:PassRole"]
    assert {worker["IamInstanceProfile"]["Name"] for worker in workers} == {passed}
    storage = urlsplit(environment(config)["MARIO_DIST_STORAGE"])
    assert node[1]["Resource"] == f"arn:aws:s3:::{storage.netloc}{storage.path}/*"
    assert node[0]["Condition"]["StringLikeIfExists"]["s3:prefix"] == [
        storage.path[1:],
        f"{storage.path[1:]}/*",
    ]


@pytest.mark.parametrize("name", ["head", "node"])
def test_iam_takes_no_policy_with_a_mistake(name: str) -> None:
    """That it takes those of cluster/iam is in every test that makes an account."""
    broken = changed(filled(POLICIES[name]), '"Effect": "Allow"', '"Effect": "Alow"')
    with moto.mock_aws(), pytest.raises(ClientError, match="MalformedPolicyDocument"):
        boto3.client("iam", REGION).create_policy(PolicyName="policy", PolicyDocument=broken)


# Google Cloud: bootstrap and machines against a stand-in for its API.


class Google:
    """Answers what the launcher asks of Google's API; every machine that is asked for runs at once."""

    def __init__(self) -> None:
        self.machines: dict[str, Config] = {}
        self.bindings: list[Config] = []

    def request(self, uri: str, method: str = "GET", body: Any = None, **_: Any) -> tuple[Response, bytes]:
        path, sent = urlsplit(uri).path, json.loads(body) if body else {}
        if path.endswith("/instances") and method == "POST":
            self.machines[sent["name"]] = {
                **sent,
                "status": "RUNNING",
                "labelFingerprint": "0",
                "networkInterfaces": [
                    {"networkIP": f"10.0.0.1{len(self.machines)}", "accessConfigs": [{"natIP": "192.0.2.1"}]}
                ],
            }
            return self.answer({"name": "operation"})
        if path.endswith("/instances"):
            wanted = dict(
                re.findall(r"labels\.([\w-]+) = ([\w-]+)", uri.replace("+", " ").replace("%3D", "="))
            )
            found = [m for m in self.machines.values() if wanted.items() <= m["labels"].items()]
            return self.answer({"items": found})
        if path.endswith("/setLabels"):
            self.machines[path.split("/")[-2]]["labels"] = sent["labels"]
            return self.answer({"name": "operation"})
        if "/instances/" in path:
            return self.answer(self.machines[path.split("/")[-1]])
        if path.endswith(":setIamPolicy"):
            self.bindings = sent["policy"]["bindings"]
            return self.answer({})
        return self.answer(
            {
                "bindings": [],
                "commonInstanceMetadata": {},
                "email": "ray@example-project",
                "lifecycleState": "ACTIVE",
                "name": "example-project",
                "projectId": "example-project",
                "status": "DONE",
            }
        )

    def answer(self, content: Config) -> tuple[Response, bytes]:
        return Response({"status": "200", "content-type": "application/json"}), json.dumps(content).encode()


@dataclass
class Gcp:
    google: Google
    newer: str
    """What Ray's newer autoscaler says of a machine whose every command succeeded."""
    head: Machine
    learner: Machine
    rollout: Machine


@pytest.fixture(scope="module")
def gcp(person: Path) -> Gcp:
    google = Google()
    config = prepared(TEXTS["gcp"])
    config["provider"]["gcp_credentials"] = {"type": "credentials_token", "credentials": "none"}
    with patch("httplib2.Http.request", lambda _, *args, **kwargs: google.request(*args, **kwargs)):
        config = gcp_config.bootstrap_gcp(config)
        head = ray_up_older(config, GCPNodeProvider(config["provider"], config["cluster_name"]))
        reader = autoscaler(head, person)
        provider = GCPNodeProvider(config["provider"], config["cluster_name"])
        adapter = NodeProviderAdapter(provider, reader)
        for node_type in ("learner", "rollout"):
            launch(adapter, node_type)
        machines = join_all(provider, person)
        addresses = {
            machine["labels"]["ray-user-node-type"]: machine["networkInterfaces"][0]["networkIP"]
            for machine in google.machines.values()
        }
        launch(adapter, "rollout")
        with pytest.raises(Exception, match="Ray installation") as newer:
            join(reader, provider, "rollout", list(google.machines)[-1])
    return Gcp(google, str(newer.value), head, machines[addresses["learner"]], machines[addresses["rollout"]])


def google_schema() -> Config:
    """JSON schema of a machine, from the description of Google's API that its client carries."""
    folder = Path(str(discovery_cache.__file__)).parent / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]

    def strict(value: Any) -> Any:
        if isinstance(value, list):
            return [strict(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        kept = {
            k: strict(v) for k, v in value.items() if k in ("type", "properties", "items", "enum", "$ref")
        }
        if "properties" in kept:
            kept["properties"] = {name: strict(inner) for name, inner in value["properties"].items()}
            kept["additionalProperties"] = False
        if "$ref" in kept:
            kept["$ref"] = f"#/definitions/{kept['$ref']}"
        # Google writes 64-bit numbers as strings and takes both.
        if value.get("format") in ("int64", "uint64"):
            kept["type"] = ["string", "integer"]
        return kept

    return {
        "definitions": {name: strict(schema) for name, schema in schemas.items()},
        "$ref": "#/definitions/Instance",
    }


@pytest.fixture(scope="module")
def instance_schema() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(google_schema())


@pytest.mark.parametrize("node_type", ["head", "learner", "rollout"])
def test_google_takes_every_node_config(node_type: str, instance_schema: jsonschema.Draft7Validator) -> None:
    instance_schema.validate(node_types(prepared(TEXTS["gcp"]))[node_type]["node_config"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("machineType: n2-standard-2", "machine: n2-standard-2"),
        ("diskSizeGb:", "diskSizeGB:"),
        ("provisioningModel: SPOT", "provisioningModel: SPOTTY"),
        ("automaticRestart: false", "automaticRestart: never"),
        ("autoDelete: true", "autoDelete: 1"),
    ],
)
def test_google_refuses_a_mistake(old: str, new: str, instance_schema: jsonschema.Draft7Validator) -> None:
    types = node_types(prepared(changed(TEXTS["gcp"], old, new)))
    assert any(list(instance_schema.iter_errors(node_type["node_config"])) for node_type in types.values())


def test_google_gets_the_machines_that_the_file_says(
    gcp: Gcp, instance_schema: jsonschema.Draft7Validator
) -> None:
    machines = {machine["labels"]["ray-user-node-type"]: machine for machine in gcp.google.machines.values()}
    assert set(machines) == {"head", "learner", "rollout"}
    for node_type, machine in machines.items():
        instance_schema.validate(machine)
        account_of = "head" if node_type == "head" else "node"
        assert machine["serviceAccounts"][0]["email"].startswith(f"mario-dist-{account_of}@")
    spot = {name: m.get("scheduling", {}).get("provisioningModel") == "SPOT" for name, m in machines.items()}
    assert spot == {"head": False, "learner": False, "rollout": True}
    assert machines["rollout"]["scheduling"]["instanceTerminationAction"] == "DELETE"


def test_ray_gives_its_own_account_on_google_as_much_as_the_readme_says(gcp: Gcp) -> None:
    assert {binding["role"] for binding in gcp.google.bindings} == set(
        gcp_config.DEFAULT_SERVICE_ACCOUNT_ROLES
    )
    assert "ray-autoscaler-sa-v1" in README
    assert all(role in README for role in gcp_config.DEFAULT_SERVICE_ACCOUNT_ROLES)


def test_the_newer_autoscaler_does_not_see_that_a_machine_on_google_works(gcp: Gcp) -> None:
    """It looks at tags from before the last change. Where this fails, README.md's advice can go."""
    assert gcp.newer == "Ray installation failed with unexpected status: setting-up"
    assert "RAY_UP_enable_autoscaler_v2=0" in README


def test_google_machines_have_the_cores_that_the_file_says() -> None:
    for name in ("learner", "rollout"):
        node_type = node_types(prepared(TEXTS["gcp"]))[name]
        assert node_type["node_config"]["machineType"].endswith(f"-{node_type['resources']['CPU']}")


# Machines of one's own.


@dataclass
class Local:
    head: Machine
    worker: Machine


@pytest.fixture(scope="module")
def local(person: Path) -> Local:
    config = prepared(TEXTS["local"])
    head = ray_up_older(config, local_nodes.LocalNodeProvider(config["provider"], config["cluster_name"]))
    reader = autoscaler(head, person)
    provider = local_nodes.LocalNodeProvider(config["provider"], config["cluster_name"])
    adapter = NodeProviderAdapter(provider, reader)
    for _ in config["provider"]["worker_ips"]:
        launch(adapter, config["head_node_type"])
    machines = join_all(provider, person)
    assert set(machines) == set(config["provider"]["worker_ips"])
    return Local(head, machines["192.0.2.12"])


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


# What all files have in common, as the launcher runs it.


@pytest.fixture(scope="module", params=NAMES)
def launched(request: pytest.FixtureRequest) -> Any:
    """A head and a worker of each file."""
    return request.getfixturevalue(request.param)


def worker_of(launched: Any) -> Machine:
    worker: Machine = launched.worker if isinstance(launched, Local) else launched.rollout
    return worker


def environment(config: Config) -> dict[str, str]:
    """The variables that every container has."""
    options = config["docker"]["run_options"]
    return dict(o.removeprefix("--env=").split("=", 1) for o in options if o.startswith("--env="))


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


# What ties the files to the program.


@pytest.mark.parametrize("name", NAMES)
def test_image_is_of_this_version_and_this_ray(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = ".".join(importlib.metadata.version("ray").split(".")[:2])
    images = re.findall(r"\S*/mario-dist:(\S+)", TEXTS[name])
    assert {image.removesuffix("-gpu") for image in images} == {f"{project['version']}-ray{installed}"}
    (pinned,) = [d for d in project["dependencies"] if re.match(r"ray\b", d)]
    assert f">={installed}," in pinned
    for target in {"gpu" if image.endswith("-gpu") else "cpu" for image in images}:
        assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE)


def read_variables() -> set[str]:
    """The variables that the program, MLflow and Ray read."""
    sources = [file.read_text() for file in (ROOT / "mario_dist").rglob("*.py")]
    names = {name for source in sources for name in re.findall(r"\bMARIO_DIST_[A-Z]+\b", source)}
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "environment_variables.py").read_text()
    names |= set(re.findall(r'"(MLFLOW_\w+)"', source))
    names |= {f"RAY_{name}" for name in dir(ray._config) if name.startswith("health_check_")}
    return names | {AUTH_MODE_ENV_VAR, "RAY_AUTH_TOKEN_PATH"}  # the latter has a test of its own


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_one_that_is_read(name: str) -> None:
    docker = prepared(TEXTS[name])["docker"]
    options = docker["run_options"] + docker["head_run_options"]
    set_here = {o.removeprefix("--env=").split("=")[0] for o in options if o.startswith("--env=")}
    assert {"MARIO_DIST_STORAGE", "MARIO_DIST_RUNS", "RAY_health_check_period_ms"} <= set_here
    assert set_here <= read_variables()


def test_a_misspelt_variable_is_not_read() -> None:
    names = {
        "MARIO_DIST_STORE",
        "RAY_health_check_periods_ms",
        "RAY_HEALTH_CHECK_PERIOD_MS",
        "RAY_AUTHENTICATION_MODE",
    }
    assert names.isdisjoint(read_variables())


def test_ray_reads_the_token_from_the_file(person: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = AuthenticationTokenLoader.instance()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(person / ".config/mario-dist/secrets/auth_token"))
    loader.reset_cache()
    assert loader.get_raw_token(ignore_auth_mode=True) == "0123"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(person / "nothing"))
    loader.reset_cache()
    with pytest.raises(AuthenticationError, match="cannot be opened"):
        loader.has_token(ignore_auth_mode=True)
    monkeypatch.undo()
    loader.reset_cache()


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_that_vanishes_is_missed_within_seven_seconds(name: str) -> None:
    options = prepared(TEXTS[name])["docker"]["head_run_options"]
    found = dict(re.findall(r"RAY_health_check_(\w+)=(\d+)", " ".join(options)))
    timeout_ms, period_ms, failures = (
        int(found[n]) for n in ("timeout_ms", "period_ms", "failure_threshold")
    )
    # Each check waits its time-out, and the next comes a period later.
    assert failures * (timeout_ms + period_ms) <= 7000


def test_one_node_type_learns_and_the_head_does_not_compute() -> None:
    for name in ("aws", "gcp"):
        config = prepared(TEXTS[name])
        types = node_types(config)
        assert config["head_node_type"] == "head"
        assert types["head"]["resources"] == {"CPU": 0}
        assert types["head"]["max_workers"] == 0
        assert [n for n, node_type in types.items() if "learner" in node_type["resources"]] == ["learner"]
        assert (types["learner"]["min_workers"], types["learner"]["max_workers"]) == (1, 1)
        assert types["rollout"]["min_workers"] == 0
        assert config["max_workers"] == sum(node_type["max_workers"] for node_type in types.values())
        assert config["idle_timeout_minutes"] <= 10
        assert config["provider"]["cache_stopped_nodes"] is False


def test_disks_are_encrypted_and_go_with_their_machine() -> None:
    for node_type in node_types(prepared(TEXTS["aws"])).values():
        disks = [disk["Ebs"] for disk in node_type["node_config"]["BlockDeviceMappings"]]
        assert disks
        assert all(disk["Encrypted"] and disk["DeleteOnTermination"] for disk in disks)
    for node_type in node_types(prepared(TEXTS["gcp"])).values():
        assert all(disk["autoDelete"] for disk in node_type["node_config"]["disks"])


# What must not be committed, and what a person must fill in.


def leaks(text: str) -> list[str]:
    """What looks like a secret, an account or a package index."""
    return re.findall(
        r"AKIA\w{16}|ASIA\w{16}|\b\d{12}\b|BEGIN [A-Z ]*PRIVATE|\b[0-9a-f]{32,}\b|\bxox\w-|ghp_\w+"
        r"|(?i:(?:password|secret|token|api_?key))\s*[=:]\s*(?!token\b)[^\s/<]\S*|://[^/\s:@]+:(?!PASSWORD@)[^/\s@]+@"
        r"|pypi\.\S+|/simple\b|\bpip install\b",
        text,
    )


@pytest.mark.parametrize(
    "file", sorted(p.relative_to(CLUSTER).as_posix() for p in CLUSTER.rglob("*") if p.is_file())
)
def test_nothing_is_committed_that_must_not_be(file: str) -> None:
    assert leaks((CLUSTER / file).read_text()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RAY_AUTH_TOKEN_PATH=/home/mario/secrets/auth_token", f"RAY_AUTH_TOKEN={'0a' * 32}"),
        ("FILL_IN_REGISTRY", f"{'0123' * 3}.dkr.ecr.us-east-1.amazonaws.com"),
        ("MARIO_DIST_RUNS=/work/runs", "MARIO_DIST_DB=postgresql://mario:hunter2@db/mario"),
        ("setup_commands: []", "setup_commands: [pip install ray]"),
        ("MARIO_DIST_RUNS=/work/runs", f"AWS_ACCESS_KEY_ID=AKIA{'X' * 16}"),
    ],
)
def test_what_must_not_be_committed_is_found(old: str, new: str) -> None:
    assert leaks(changed(TEXTS["aws"], old, new)) != []


README = (CLUSTER / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_says_what_to_fill_in(name: str) -> None:
    asked_for = set(re.findall(r"[\w-]*FILL_IN\w*", TEXTS[name] + "".join(POLICIES.values())))
    assert asked_for - {"FILL_IN"} <= set(re.findall(r"[\w-]*FILL_IN\w*", README))
    assert all(word in FILLED for word in asked_for - {"FILL_IN"})


def test_the_readme_shows_no_file_that_is_not_there() -> None:
    shown = set(re.findall(r"(?:`|cluster/)((?:iam/)?[a-z]+\.(?:yaml|json))\b", README))
    assert {"aws.yaml", "gcp.yaml", "local.yaml", "iam/head.json", "iam/node.json", "iam/trust.json"} <= shown
    assert all((CLUSTER / file).exists() for file in shown)
