"""MLflow on SQLite and behind a real server, each started once: every test makes runs of its own."""

from collections.abc import Iterator

import pytest
from support.servers import MLflowServer, mlflow_server

from mario_dist.registry import Tracker


@pytest.fixture(scope="session", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A server that starts, which takes it long, while the tests on SQLite run."""
    directory = tmp_path_factory.mktemp("server")
    with mlflow_server(directory, f"sqlite:///{directory}/server.db") as started:
        yield started


@pytest.fixture(scope="session")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs/mlflow.db"


@pytest.fixture(scope="session")
def server_uri(server: MLflowServer) -> str:
    return server.wait()


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
