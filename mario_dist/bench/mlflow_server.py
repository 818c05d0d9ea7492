"""An MLflow server of the benchmark's own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from mario_dist.errors import UserError

START_TIMEOUT_S = 240.0


class MLflowServer:
    """A server on a port of its own, at which it is again when it was killed and started.

    artifacts: where it keeps the files of models.
    """

    def __init__(self, directory: Path, backend: str) -> None:
        """Start it, which takes seconds: ``wait`` where it is needed. Its files go into ``directory``."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"
        self.artifacts = directory / "artifacts"
        self._directory = directory
        self._backend = backend
        self.start()

    def start(self) -> None:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
                    *("--port", str(self._port), "--backend-store-uri", self._backend),
                    *("--artifacts-destination", str(self.artifacts)),
                ],
                cwd=self._directory,
                env={**os.environ, **quiet},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it starts workers, which end with it
            )

    def wait(self) -> str:
        """Its URL, once it answers. Raises ``UserError`` where it does not."""
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return self.url
            time.sleep(0.1)
        said = (self._directory / "log").read_text(errors="replace").splitlines()
        raise UserError(f"the MLflow server does not start: {[*said[-1:], 'it said nothing'][0]}")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
