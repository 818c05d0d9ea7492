"""A peer in a process of its own, so that its threads, memory and Ray cannot disturb the next contender."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from mario_dist.bench.peers.settings import PeerResult, Settings
from mario_dist.errors import UserError

# Under `uv run`, Ray would start every worker through uv and upload the working directory to itself.
_CHILD_ENVIRONMENT = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def run_in_child(module: str, settings: Settings, timeout_s: float) -> PeerResult:
    """``module``'s ``measure(settings)`` in a fresh interpreter.

    Raises ``UserError`` with the last line of the child's stderr where it fails, and where it takes
    longer than ``timeout_s``; the child's own children are ended with it.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Files, not pipes: a grandchild that outlives the child would hold a pipe open for ever.
        out, err = Path(folder, "out"), Path(folder, "err")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            code = _wait(
                subprocess.Popen(
                    [sys.executable, "-m", module, settings.to_json()],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=os.environ | _CHILD_ENVIRONMENT,
                    start_new_session=True,
                ),
                timeout_s,
            )
        name = module.rpartition(".")[2]
        if code is None:
            raise UserError(f"the peer {name} did not finish within {timeout_s:.0f} s")
        if code:
            raise UserError(f"the peer {name} failed with exit code {code}: {_last_line(err)}")
        return PeerResult.from_json(_last_line(out))


def child_main[S: Settings](measure: Callable[[S], PeerResult], settings_type: type[S]) -> None:
    """The child's side: settings from argv[1], one line of JSON on stdout and nothing else there."""
    settings = settings_type.from_json(sys.argv[1])
    stdout = _stdout_for_json()
    os.write(stdout, f"{measure(settings).to_json()}\n".encode())


def _stdout_for_json() -> int:
    """A private descriptor of stdout; what libraries and grandchildren print there goes to stderr now."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    return stdout


def _wait(child: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """The exit code, or None where the time ran out. Leaves nothing of the child's session running."""
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")
