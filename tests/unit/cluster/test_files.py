"""cluster/: what the files say, held to the program, to README.md, and to what must not be committed."""

import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import ray
from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
from ray._raylet import AuthenticationTokenLoader
from ray.exceptions import AuthenticationError
from support.launcher import (
    CLUSTER,
    DOCKERFILE,
    FILLED,
    NAMES,
    POLICIES,
    README,
    ROOT,
    TEXTS,
    changed,
    node_types,
    prepared,
)

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


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_says_what_to_fill_in(name: str) -> None:
    asked_for = set(re.findall(r"[\w-]*FILL_IN\w*", TEXTS[name] + "".join(POLICIES.values())))
    assert asked_for - {"FILL_IN"} <= set(re.findall(r"[\w-]*FILL_IN\w*", README))
    assert all(word in FILLED for word in asked_for - {"FILL_IN"})


def test_the_readme_shows_no_file_that_is_not_there() -> None:
    shown = set(re.findall(r"(?:`|cluster/)((?:iam/)?[a-z]+\.(?:yaml|json))\b", README))
    assert {"aws.yaml", "gcp.yaml", "local.yaml", "iam/head.json", "iam/node.json", "iam/trust.json"} <= shown
    assert all((CLUSTER / file).exists() for file in shown)
