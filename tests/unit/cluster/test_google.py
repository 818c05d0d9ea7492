"""cluster/gcp.yaml: what `ray up` and the head's autoscaler ask of Google's API, by a stand-in for it."""

import jsonschema
from ray.autoscaler._private.gcp import config as gcp_config
from support.clouds import Gcp
from support.launcher import RAYS_WARNINGS, README, TEXTS, node_types, prepared

pytestmark = RAYS_WARNINGS


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
