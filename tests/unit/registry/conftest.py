"""MLflow on SQLite and behind a real server, each started once: every test makes runs of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mario_dist.registry import Tracker

START_TIMEOUT_S = 120


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path


@pytest.fixture(scope="session", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that starts, which takes it long, while the tests on SQLite run."""
    directory = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{directory}/server.db"]
    command += ["--artifacts-destination", str(directory / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **quiet},
            stdout=log,
            stderr=log,
            start_new_session=True,  # it starts workers, which end with it
        )
    yield Server(process, f"http://127.0.0.1:{port}", directory / "log")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="session")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs/mlflow.db"


@pytest.fixture(scope="session")
def server_uri(server: Server) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return server.url
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"mlflow server did not start: {server.log.read_text()[-2000:]}")


# For the session, so that pytest runs all tests on SQLite first.
@pytest.fixture(scope="session", params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_uri")
    return found


@pytest.fixture
def tracker(uri: str) -> Iterator[Tracker]:
    opened = Tracker(uri, linger_s=0.05)
    yield opened
    opened.finish("finished")
