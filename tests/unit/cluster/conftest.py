"""What `ray up` and the head's autoscaler did with each file of cluster/, without a cloud."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jsonschema
import moto
import pytest
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import node_provider as aws_nodes
from ray.autoscaler._private.gcp import config as gcp_config
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
from ray.autoscaler._private.local import node_provider as local_nodes
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from support.clouds import (
    Aws,
    Gcp,
    Google,
    Local,
    account,
    asked,
    few_instance_types,
    google_schema,
    instances,
)
from support.launcher import (
    NAMES,
    TEXTS,
    at_home,
    autoscaler,
    join,
    join_all,
    launch,
    node_types,
    prepared,
    ray_up,
    ray_up_older,
)

# Ray's own launcher, bootstrap and node providers run against moto (AWS), a stand-in for Google's API, and a
# recorder in place of ssh and Docker: once for all tests, each file in a home of its own.


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a test runs the launcher itself."""
    with at_home(tmp_path_factory.mktemp("home")) as home:
        yield home


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Aws:
    with (
        at_home(tmp_path_factory.mktemp("home")) as person,
        moto.mock_aws(),
        patch.object(aws_nodes, "list_ec2_instances", few_instance_types),
    ):
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


@pytest.fixture(scope="session")
def gcp(tmp_path_factory: pytest.TempPathFactory) -> Gcp:
    with at_home(tmp_path_factory.mktemp("home")) as person:
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


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    with at_home(tmp_path_factory.mktemp("home")) as person:
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


@pytest.fixture(scope="module", params=NAMES)
def launched(request: pytest.FixtureRequest) -> Any:
    """A head and a worker of each file."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def instance_schema() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(google_schema())
