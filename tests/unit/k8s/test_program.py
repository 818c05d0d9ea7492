"""k8s/: what ties the manifests and README.md's commands to the program, Ray and docker/compose.yaml."""

import importlib.metadata
import importlib.util
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.kuberay import autoscaling_config
from support.commands import Result
from support.manifests import (
    OVERLAYS,
    PROJECT,
    RAY,
    README,
    ROOT,
    at,
    built,
    cluster_of,
    mounts,
    one,
    pods,
    quantity,
    ray_of,
)

from mario_dist.cli.config import read_config


def ray_requirement() -> Requirement:
    (found,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray"]
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_of_this_version_and_rays(overlay: str) -> None:
    version = cluster_of(ray_of(built(overlay)))["rayVersion"]
    assert ray_requirement().specifier.contains(version)
    assert version.split(".")[:2] == importlib.metadata.version("ray").split(".")[:2]
    tag = f"{PROJECT['version']}-ray{'.'.join(version.split('.')[:2])}"
    for pod in pods(built(overlay)):
        gpu = "nvidia.com/gpu" in json.dumps(pod.spec["containers"])
        wanted = {"postgres": "postgres:17"}.get(pod.component, f"mario-dist:{tag}{'-gpu' if gpu else ''}")
        assert [container["image"] for container in pod.spec["containers"]] == [wanted]
        assert gpu == (overlay.startswith("gpu") and pod.component == "learner")
    assert f"-t mario-dist:{tag} " in README
    assert f"-t mario-dist:{tag}-gpu " in README


def read_variables() -> set[str]:
    """The variables that the program, MLflow, Ray and PostgreSQL's image read."""
    texts = [file.read_text() for file in (ROOT / "mario_dist").rglob("*.py")]
    names = {name for text in texts for name in re.findall(r"""["'](MARIO_DIST_\w+)["']""", text)}

    def place(package: str) -> Path:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent

    for file in ("environment_variables.py", "utils/cli_args.py", "cli/__init__.py"):
        names |= set(re.findall(r'"(MLFLOW_\w+)"', (place("mlflow") / file).read_text()))
    supervisor = place("ray") / "dashboard/modules/job/job_supervisor.py"
    names |= set(re.findall(r'"(RAY_JOB_\w+)"', supervisor.read_text()))
    # Ray's core reads RAY_<setting>.
    core = (place("ray") / "core/src/ray/gcs/gcs_server").read_bytes()
    settings = rb"health_check_(?:period_ms|timeout_ms|failure_threshold)"
    names |= {f"RAY_{name.decode()}" for name in re.findall(settings, core)}
    return names | {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "PGDATA"}


def test_every_variable_is_one_that_is_read() -> None:
    known = read_variables()
    assert {"MARIO_DIST_RUN", "MLFLOW_TRACKING_URL", "RAY_health_check_timeout"}.isdisjoint(known)
    for overlay in OVERLAYS:
        for pod in pods(built(overlay)):
            assert {v["name"] for c in pod.containers for v in c.get("env", [])} <= known


def entrypoint(overlay: str) -> list[str]:
    """The words of the program that a RayJob runs."""
    shell, option, script = shlex.split(one(built(overlay), "RayJob")["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")  # whoever submits has a shell of its own
    program, marker = re.split(r"\s+&&\s+", script)
    # A head that goes leaves the same mark, and stops the program by its name.
    stop = at(one(built(overlay), "RayJob"), f"{RAY}.lifecycle.preStop.exec.command")[-1]
    assert marker.startswith("test ! -e ")
    assert stop.startswith(f"touch {marker.removeprefix('test ! -e ')}; pkill -x {program.split()[0]}; ")
    return program.split()


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_the_job_is_a_command_of_the_program(overlay: str, here: Callable[..., Result]) -> None:
    program, command, *words = entrypoint(overlay)
    assert {program: "mario_dist.cli.main:main"} == PROJECT["scripts"]
    options = dict(re.findall(r"(--[\w-]+) (\S+)", " ".join(words)))
    assert set(options) == {"--address", "--run-id"}
    arguments = [w for w in words if not w.startswith("--") and w not in options.values()]
    config = read_config(arguments)
    cluster = cluster_of(one(built(overlay), "RayJob"))
    learner, rollout = cluster["workerGroupSpecs"]
    assert (config.learner.device == "cuda") == ("nvidia.com/gpu" in json.dumps(learner))
    # All actors find room at last.
    cpus = quantity(at(rollout, "template.spec.containers.0.resources.limits.cpu"))
    assert 0 < config.rollout.actors <= rollout["maxReplicas"] * cpus
    done = here(command, "--help")
    assert all(option in done.stdout for option in options)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_autoscaler_reads_the_groups_as_meant(overlay: str) -> None:
    manifest = ray_of(built(overlay))
    cluster = {"metadata": manifest["metadata"], "spec": cluster_of(manifest)}
    types = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    found = {name: dict(group["resources"]) for name, group in types.items()}
    assert all(resources.pop("memory") > 2e9 for resources in found.values())
    cpus = {name: resources.pop("CPU") for name, resources in found.items()}
    assert cpus.pop("headgroup") == 0
    assert all(number > 0 for number in cpus.values())
    gpu = {"GPU": 1} if overlay.startswith("gpu") else {}
    assert found == {"headgroup": {}, "learner": {"learner": 1, **gpu}, "rollout": {}}
    assert types["learner"]["min_workers"] == 1
    assert types["rollout"]["max_workers"] > types["rollout"]["min_workers"] > 0


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_a_driver_that_dies_is_tried_again_and_goes_on(overlay: str) -> None:
    job = one(built(overlay), "RayJob")["spec"]
    assert job["backoffLimit"] > 0
    assert "--run-id" in entrypoint(overlay)
    rules = {next(iter(rule["condition"].items())): rule for rule in job["deletionStrategy"]["deletionRules"]}
    assert set(rules) == {
        ("jobStatus", "SUCCEEDED"),
        ("jobStatus", "FAILED"),
        ("jobDeploymentStatus", "Failed"),
    }
    # What it goes on from outlives the cluster: a claim, or object storage.
    head = at(job, "rayClusterSpec.headGroupSpec.template.spec")
    environment = {v["name"]: v.get("value") for v in head["containers"][0]["env"]}
    place = environment["MARIO_DIST_RUNS"]
    (runs,) = [m["name"] for m in mounts(head["containers"][0]) if m["mountPath"] == place]
    claimed = any(v["name"] == runs and "persistentVolumeClaim" in v for v in head["volumes"])
    assert claimed != ("MARIO_DIST_STORAGE" in environment)
    # SIGTERM: the checkpoint has its time.
    assert head["terminationGracePeriodSeconds"] > int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 120


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_the_standing_cluster_is_the_jobs(overlay: str) -> None:
    assert one(built(f"{overlay}-cluster"), "RayCluster")["spec"] == cluster_of(one(built(overlay), "RayJob"))


def test_servers_are_those_of_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    manifests = built("dev")
    mlflow = at(one(manifests, "Deployment"), "spec.template.spec.containers.0")
    theirs = compose["mlflow"]
    assert [*mlflow["command"], *mlflow["args"]] == [*theirs["entrypoint"], *theirs["command"]]
    ours = {v["name"]: v["value"] for v in mlflow["env"] if "value" in v}
    without_password = re.compile(r":\$[^@]*@")
    assert {k: without_password.sub("", v) for k, v in ours.items()} == {
        k: without_password.sub("", v) for k, v in theirs["environment"].items()
    }
    postgres = at(one(manifests, "StatefulSet"), "spec.template.spec.containers.0")
    assert postgres["image"] == compose["postgres"]["image"]
    assert postgres["readinessProbe"]["exec"]["command"] == compose["postgres"]["healthcheck"]["test"][1:]
    (sql,) = one(manifests, "ConfigMap")["data"].values()
    assert sql in (ROOT / "docker/create-mlflow-db.sql").read_text()


def commands() -> Iterator[str]:
    for block in re.findall(r"```\n(.*?)```", README, re.DOTALL):
        yield from (line.split("#")[0].strip() for line in block.splitlines())


def test_readmes_commands_name_what_is_there() -> None:
    text = "\n".join(commands())
    assert set(re.findall(r"k8s/overlays/([\w-]+)", text)) <= set(OVERLAYS)
    assert all((ROOT / place).exists() for place in re.findall(r"-[fk] (k8s/\S+)", text))
    names = {m["metadata"]["name"] for o in OVERLAYS for m in built(o)} | {"mario-dist-head-svc"}
    assert set(re.findall(r"(?:svc|job|rayjob|deploy|sts|pvc)/([\w-]+)", text)) <= names
