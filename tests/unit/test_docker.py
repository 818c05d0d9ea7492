"""docker/ and the workflows, as far as they can be checked where there is no Docker and no GitHub."""

import http.client
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from sqlalchemy import make_url
from support.commands import Result

from mario_dist.registry.connection import resolve_uri
from mario_dist.store import normalise_url

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE = (ROOT / "docker/compose.yaml").read_text()
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
EXAMPLE = (ROOT / "docker/.env.example").read_text()
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
SERVICES: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+[^}]*\}", "0123abcd", COMPOSE))["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("mario-dist")}
STARTUP_S = 120


def changed(text: str, old: str, new: str) -> str:
    """``text`` with a mistake in it."""
    assert old in text
    return text.replace(old, new)


def output(*command: str | Path) -> str:
    """What a linter says; empty where it finds nothing."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout + done.stderr if done.returncode else ""


def schema_errors(text: str, folder: Path) -> str:
    file = folder / "compose.yaml"
    file.write_text(text)
    return output(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", file)


def test_compose_file_fits_the_schema(tmp_path: Path) -> None:
    assert schema_errors(COMPOSE, tmp_path) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [("stop_grace_period:", "stop_grace:"), ("condition: service_healthy", "condition: healthy")],
)
def test_a_mistake_does_not_fit_the_schema(old: str, new: str, tmp_path: Path) -> None:
    assert "compose.yaml" in schema_errors(changed(COMPOSE, old, new), tmp_path)


def lint(text: str, folder: Path) -> str:
    file = folder / "Dockerfile"
    file.write_text(text)
    return output(BIN / "hadolint", "--no-color", "--config", os.devnull, file)


def test_dockerfile_passes_hadolint(tmp_path: Path) -> None:
    assert lint(DOCKERFILE, tmp_path) == ""


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("uv:0.13", "uv:latest", "DL3007"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        (" --no-install-recommends", "", "DL3015"),
        ('CMD ["mario-dist", "--help"]', "CMD mario-dist --help", "DL3025"),
        ("USER 1000:1000\n", "USER root\n", "DL3002"),
    ],
)
def test_hadolint_finds_a_mistake(old: str, new: str, rule: str, tmp_path: Path) -> None:
    assert rule in lint(changed(DOCKERFILE, old, new), tmp_path)


def loose_secrets(text: str) -> list[str]:
    """What in a Compose file holds a secret, or goes on without one that it needs."""
    secret = r"\w*(?:PASSWORD|PASSWD|SECRET|TOKEN|KEY)\w*"
    found = [f"{name} is not required" for name in re.findall(rf"\$\{{({secret})\b(?!:\?)", text)]
    found += [f"{text} has no braces" for text in re.findall(r"(?<!\$)\$\w+", text)]
    bare = re.sub(r"\$\{\w+:\?[^}]*\}", "<required>", text)
    literals = re.findall(rf"^[\s-]*{secret}\s*[:=](.*)$", bare, re.MULTILINE)
    literals += re.findall(r"://[^/\s:@]*:([^/\s@]*)@", bare)
    return found + [
        f"{value.strip()!r} is no variable" for value in literals if value.strip() != "<required>"
    ]


def test_every_secret_comes_from_the_environment_and_is_required() -> None:
    assert loose_secrets(COMPOSE) == []
    assert COMPOSE.count("${POSTGRES_PASSWORD:?") >= 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("${POSTGRES_PASSWORD:?see docker/.env.example}@", "hunter2@"),
        ("${POSTGRES_PASSWORD:?see docker/.env.example}@", "${POSTGRES_PASSWORD:-mario}@"),
        ("${POSTGRES_PASSWORD:?see docker/.env.example}@", "${POSTGRES_PASSWORD}@"),
        ("${POSTGRES_PASSWORD:?see docker/.env.example}@", "$POSTGRES_PASSWORD@"),
        ("POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?see docker/.env.example}", "POSTGRES_PASSWORD: mario"),
        ("POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?see docker/.env.example}", "POSTGRES_PASSWORD:"),
    ],
)
def test_a_secret_that_is_written_down_or_optional_is_found(old: str, new: str) -> None:
    assert loose_secrets(changed(COMPOSE, old, new)) != []


def test_the_example_names_every_variable_and_gives_no_values() -> None:
    values = dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert values == dict.fromkeys(re.findall(r"\$\{(\w+)", COMPOSE), "")


def read_variables() -> set[str]:
    """The MARIO_DIST_ variables that the program reads, and the MLFLOW_ ones that MLflow does."""
    read = re.compile(r"""os\.environ(?:\.get\(|\[)\s*["'](MARIO_DIST_\w+)["']""")
    names = {name for file in (ROOT / "mario_dist").rglob("*.py") for name in read.findall(file.read_text())}
    # Importing MLflow would take longer than all other tests of this file.
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    for file in ("environment_variables.py", "utils/cli_args.py", "cli/__init__.py"):
        names |= set(re.findall(r'"(MLFLOW_\w+)"', (Path(spec.origin).parent / file).read_text()))
    return names


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_one_that_is_read(name: str) -> None:
    assert set(OURS[name]["environment"]) <= read_variables()


def test_a_misspelt_variable_is_not_read() -> None:
    assert {"MARIO_DIST_DATABASE", "MLFLOW_TRACKING_URL"}.isdisjoint(read_variables())


PROGRAMS = [name for name, service in OURS.items() if service["entrypoint"] == ["mario-dist"]]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_command_is_one_of_the_program(name: str, here: Callable[..., Result]) -> None:
    done = here(*OURS[name]["command"], "--help")
    assert done.returncode == 0, done.stderr


def test_run_store_and_mlflow_have_a_database_each() -> None:
    postgres = SERVICES["postgres"]["environment"]
    ours = make_url(normalise_url(OURS["trainer"]["environment"]["MARIO_DIST_DB"]))
    backend = OURS["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert backend == resolve_uri(backend)  # names the driver, as MLflow's own server needs it
    theirs = make_url(backend)
    for url in (ours, theirs):
        assert (url.drivername, url.host, url.port) == ("postgresql+psycopg2", "postgres", 5432)
        assert (url.username, url.password) == (postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"])
    assert ours.database == postgres["POSTGRES_DB"]
    (script,) = [volume for volume in SERVICES["postgres"]["volumes"] if "initdb.d" in volume]
    made = re.findall(r"^CREATE DATABASE (\w+);$", (ROOT / "docker" / script.split(":")[0]).read_text(), re.M)
    assert made == [theirs.database]


def test_only_this_machine_reaches_a_port() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_must_last_lies_on_volumes_that_the_user_may_write() -> None:
    made = shlex.split(re.findall(r"install --directory [^\\\n]*", DOCKERFILE)[0])
    mounts = {name: [v.split(":")[1] for v in service["volumes"]] for name, service in OURS.items()}
    assert {mount for places in mounts.values() for mount in places} <= set(made)
    assert option("--artifacts-destination") in mounts["mlflow"]
    for name in ("trainer", "watcher"):
        assert OURS[name]["environment"]["MARIO_DIST_RUNS"] in mounts[name]


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    copies = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    sources = {source for copy in copies for source in copy}
    assert sources == {"pyproject.toml", "README.md", "LICENSE", "configs", "mario_dist"}
    assert all((ROOT / source).exists() for source in sources)
    assert {f"!{source}" for source in sources} < set((ROOT / ".dockerignore").read_text().splitlines())


def test_no_package_index_is_written_down() -> None:
    assert "ARG TORCH_INDEX=\n" in DOCKERFILE
    assert "://" not in DOCKERFILE + EXAMPLE


@pytest.mark.parametrize("index", ["", "https://wheels.example/cpu"])
def test_the_index_that_the_user_gives_is_for_pytorch_alone(index: str, tmp_path: Path) -> None:
    (script,) = re.findall(r"if \[ -n .*?\n    fi", DOCKERFILE, re.DOTALL)
    original = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(original)
    subprocess.run(["sh", "-c", script], cwd=tmp_path, env={**os.environ, "TORCH_INDEX": index}, check=True)
    written = (tmp_path / "pyproject.toml").read_text()
    if index:
        uv = tomllib.loads(written)["tool"]["uv"]
        assert uv["index"] == [{"name": "torch", "url": index, "explicit": True}]
        assert uv["sources"] == {"torch": {"index": "torch"}}
    else:
        assert written == original


def stages(text: str) -> dict[str, str]:
    """What is written in each stage of a Dockerfile, by its name."""
    parts = re.split(r"^FROM (.*) AS (\w+)$", text, flags=re.MULTILINE)[1:]
    return {name: f"FROM {base}\n{body}" for base, name, body in zip(*[iter(parts)] * 3, strict=True)}


def test_compose_builds_a_target_that_is_there() -> None:
    assert list(stages(DOCKERFILE))[-2:] == ["cpu", "gpu"]
    assert stages(DOCKERFILE)["gpu"].startswith("FROM cpu\n")
    assert [service["build"]["target"] for service in OURS.values() if "build" in service] == ["cpu"]


def strangers(text: str) -> list[str]:
    """Where a Dockerfile's Python or Ray need not be the project's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = (ROOT / ".python-version").read_text().strip()
    assert SpecifierSet(project["requires-python"]).contains(f"{python}.0")
    found = [
        image for image in re.findall(r"^FROM (python\S*)", text, re.MULTILINE) if f":{python}-" not in image
    ]
    # Everything comes from pyproject.toml by `uv sync`; what is installed later brings no Ray of its own.
    synced = re.search(
        r"^COPY pyproject.toml .*?uv sync --no-dev --extra cluster --no-install-project$", text, re.M | re.S
    )
    found += [] if synced else ["no sync"]
    for install in re.findall(r"pip install (.*)", text):
        names = [word for word in shlex.split(install) if not word.startswith("-")]
        found += [word for word in names if canonicalize_name(re.split(r"\W", word)[0]) in {"ray", "torch"}]
    return found


def test_python_and_ray_in_the_image_are_the_projects() -> None:
    assert strangers(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("python:3.13-slim-trixie AS cpu", "python:3.14-slim-trixie AS cpu"),
        ("uv sync --no-dev --extra cluster --no-install-project\n", "uv pip install ray\n"),
        ("--extra cluster --no-install", "--extra cluster --with ray==2.59 --no-install"),
    ],
)
def test_another_python_or_ray_is_found(old: str, new: str) -> None:
    assert strangers(changed(DOCKERFILE, old, new)) != []


def test_the_image_has_what_rays_launcher_and_kuberay_need() -> None:
    cpu = stages(DOCKERFILE)["cpu"]
    assert {"rsync", "wget", "openssh-client", "procps"} < set(cpu.replace("\\\n", " ").split())
    # `docker run IMAGE bash`, and a shell of KubeRay's.
    assert "\nENTRYPOINT" not in DOCKERFILE
    # A home of his own, for a user who is not root: the launcher reads it from the image's environment.
    (user,) = re.findall(r"^RUN useradd --uid 1000 --create-home .* (\w+) \\$", cpu, re.MULTILINE)
    assert re.findall(r"\bHOME=(\S+)", cpu) == [f"/home/{user}"]
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["1000:1000"]


def test_a_login_shell_finds_the_program(tmp_path: Path) -> None:
    """Ray's launcher runs its commands in one, where Debian's /etc/profile sets PATH anew."""
    written = re.findall(r"(echo .*?) > /etc/profile\.d/[\w-]+\.sh$", DOCKERFILE, re.MULTILINE)[0]
    (place,) = re.findall(r"\bPATH=(\S+):\$PATH \\$", DOCKERFILE, re.MULTILINE)
    script = f"{written} > {tmp_path}/venv.sh; PATH=/usr/bin:/bin; . {tmp_path}/venv.sh; echo $PATH"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"{place}:/usr/bin:/bin"


@pytest.mark.parametrize(("session", "raylet", "code"), [(0, 0, 0), (1, 1, 0), (1, 0, 1)])
def test_health_is_that_a_ray_node_has_its_raylet(
    session: int, raylet: int, code: int, tmp_path: Path
) -> None:
    (text,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*?\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    command = [changed(word, "/tmp/ray", str(tmp_path)) if "/" in word else word for word in json.loads(text)]
    if session:
        (tmp_path / "session_latest").touch()
    stand_in = tmp_path / "pgrep"  # other tests have raylets too
    stand_in.write_text(f'#!/bin/sh\ntest "$*" = "-x raylet" && exit {1 - raylet}\nexit 9\n')
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(command, env={"PATH": path}, timeout=60, capture_output=True)
    assert done.returncode == code


def test_gpu_target_asks_for_the_driver_and_for_cuda() -> None:
    gpu = stages(DOCKERFILE)["gpu"]
    assert "NVIDIA_VISIBLE_DEVICES=all" in gpu
    assert re.findall(r"NVIDIA_DRIVER_CAPABILITIES=(\S+)", gpu) == ["compute,utility"]
    assert "assert torch.version.cuda" in gpu


def test_workflows_fit_the_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    assert output(*command, *WORKFLOWS) == ""


def zizmor(text: str, folder: Path) -> str:
    file = folder / "ci.yml"
    file.write_text(text)
    command = [BIN / "zizmor", "--offline", "--no-config", "--no-progress", "--min-severity=high", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode in (0, 14), done.stderr  # 14: something high
    return done.stdout if done.returncode else ""


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_have_nothing_high_for_zizmor(workflow: Path, tmp_path: Path) -> None:
    assert zizmor(workflow.read_text(), tmp_path) == ""


@pytest.mark.parametrize(
    ("old", "new", "audit"),
    [
        ("08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0", "v5", "unpinned-uses"),
        ("- run: .ci/run", "- run: echo ${{ github.head_ref }}", "template-injection"),
        ("pull_request:", "pull_request_target:", "dangerous-triggers"),
    ],
)
def test_zizmor_finds_a_mistake(old: str, new: str, audit: str, tmp_path: Path) -> None:
    (workflow,) = WORKFLOWS
    assert audit in zizmor(changed(workflow.read_text(), old, new), tmp_path)


@dataclass(frozen=True)
class Server:
    port: int
    artifacts: Path

    def status(self, path: str, host: str, method: str = "GET", body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Host": host})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()


def option(name: str) -> str:
    (value,) = [a.removeprefix(f"{name}=") for a in OURS["mlflow"]["command"] if a.startswith(f"{name}=")]
    return str(value)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real MLflow server with the service's arguments and environment, but for where things lie."""
    folder = tmp_path_factory.mktemp("mlflow")
    found = Server(free_port(), folder / "artifacts")
    replaced = {
        "--host": "127.0.0.1",
        "--port": str(found.port),
        "--artifacts-destination": str(found.artifacts),
    }
    service = OURS["mlflow"]
    arguments = list(service["command"])
    for name, value in replaced.items():
        arguments[arguments.index(f"{name}={option(name)}")] = f"{name}={value}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        **service["environment"],
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    (program,) = service["entrypoint"]
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [BIN / program, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + STARTUP_S
        while not answers(found):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield found
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(server: Server) -> bool:
    try:
        return server.status("/health", "localhost") == 200
    except OSError:
        return False


def health_check(port: int) -> int:
    """The exit code of the service's health check, asking ``port``."""
    kind, program, *arguments = OURS["mlflow"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    command = [sys.executable, *(changed(a, ":5000/", f":{port}/") if ":" in a else a for a in arguments)]
    direct = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(command, env=direct, capture_output=True, timeout=60).returncode


def test_mlflow_starts_and_is_healthy(server: Server) -> None:
    assert server.status("/health", f"127.0.0.1:{server.port}") == 200
    assert health_check(server.port) == 0
    assert health_check(free_port()) == 1


def test_probes_need_no_name(server: Server) -> None:
    assert server.status("/health", "10.0.0.7:5000") == 200  # Kubernetes' call it by the pod's address


def test_mlflow_answers_to_its_names_alone(server: Server) -> None:
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    (published,) = [port.split(":")[1] for port in OURS["mlflow"]["ports"]]
    inside = {
        urlsplit(OURS[name]["environment"]["MLFLOW_TRACKING_URI"]).netloc for name in ("trainer", "watcher")
    }
    for host in (*inside, f"localhost:{published}", f"127.0.0.1:{published}"):
        assert server.status(path, host) == 200, host
    for host in ("evil.example:5000", "mlflow:5000.evil.example", "mlflow", "10.0.0.1:5000"):
        assert server.status(path, host) == 403, host


def test_mlflow_keeps_the_files_that_clients_send(server: Server) -> None:
    path = "/api/2.0/mlflow-artifacts/artifacts/1/notes.txt"
    assert server.status(path, "mlflow:5000", "PUT", b"kept") == 200
    assert (server.artifacts / "1/notes.txt").read_bytes() == b"kept"
