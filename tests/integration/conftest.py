"""A PostgreSQL and an MLflow server, for the tests that need both."""

import shutil
from collections.abc import Iterator

import pytest
from support.servers import MLflowServer, mlflow_server, new_database, postgres_server

from mario_dist.registry import ModelRegistry

ZOO_MODEL = "mario-1-1-ppo"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with (
        new_database(postgres) as backend,
        mlflow_server(tmp_path_factory.mktemp("mlflow"), backend) as started,
    ):
        started.wait()
        yield started


@pytest.fixture
def model(server: MLflowServer, postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a model without versions, on the server; runs go to a database of their own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    with new_database(postgres) as url:
        monkeypatch.setenv("MARIO_DIST_DB", url)
        yield ZOO_MODEL
    from mlflow import MlflowClient

    client = MlflowClient(server.url, registry_uri=server.url)
    for found in client.search_registered_models():
        client.delete_registered_model(found.name)
    shutil.rmtree(server.artifacts, ignore_errors=True)


@pytest.fixture
def registry(server: MLflowServer) -> ModelRegistry:
    return ModelRegistry(server.url)
