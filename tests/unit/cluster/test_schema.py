"""cluster/*.yaml: what Ray, AWS and Google take by their own schemas, and that they refuse a mistake."""

from collections.abc import Callable, Iterator
from typing import Any

import botocore.session
import jsonschema
import pytest
from botocore.validate import ParamValidator
from click import ClickException
from support.launcher import NAMES, TEXTS, Config, changed, node_types, prepared

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


# What Google's description of its API says.


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
