"""Where the launcher starts machines: AWS by moto, a stand-in for Google's API, and what is started there."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import boto3
import botocore.client
import yaml
from googleapiclient import discovery_cache
from httplib2 import Response
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import utils as aws_utils
from support.launcher import POLICIES, TEXTS, Config, Machine, filled, node_types, prepared

# AWS, by moto.

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


# Google Cloud, by a stand-in for its API.


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


# Machines of one's own.


@dataclass
class Local:
    head: Machine
    worker: Machine
