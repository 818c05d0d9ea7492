"""cluster/aws.yaml and cluster/iam: the machines that `ray up` makes under moto, and what roles may do."""

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import boto3
import botocore.client
import moto
import pytest
from botocore.exceptions import ClientError
from click import ClickException
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import node_provider as aws_nodes
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from support.clouds import REGION, Aws, account, instances
from support.launcher import (
    POLICIES,
    RAYS_WARNINGS,
    TEXTS,
    Config,
    changed,
    filled,
    node_types,
    prepared,
)

pytestmark = RAYS_WARNINGS


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


def environment(config: Config) -> dict[str, str]:
    """The variables that every container has."""
    options = config["docker"]["run_options"]
    return dict(o.removeprefix("--env=").split("=", 1) for o in options if o.startswith("--env="))


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
