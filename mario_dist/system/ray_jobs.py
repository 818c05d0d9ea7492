"""Trainings as jobs of a Ray cluster, through its Jobs API."""

import asyncio
import logging
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from mario_dist.errors import UserError

_RUN = "run_id"
"""The metadata by which a run's jobs are found."""
_STOP_S = 120
"""What Ray gives a job that it stops, to write a checkpoint; its own default is 3 s."""
_POLL_S = 1.0
_RETRIES = 30

EXCLUDES = (
    ".git",
    ".venv",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "/build",
    "/dist",
    "/docs",
    "/runs",
    "/mlruns",
    "/tests",
    "/uv.lock",
    "node_modules",
    "*.gif",
    "*.mp4",
    "*.db",
    ".env",
    "*.pem",
)
"""What stays here of a working directory, beside what git ignores (in gitignore's syntax)."""


class Jobs:
    """The jobs of the cluster whose dashboard is at ``address``, ``http://HOST:8265``."""

    def __init__(self, address: str) -> None:
        """Raises ``UserError`` where it can't be reached."""
        self.address = address
        if not address.startswith(("http://", "https://")):
            raise UserError(f"{address}: the address of Ray's dashboard is a URL, as http://127.0.0.1:8265")
        self._client: JobSubmissionClient = self._ask(JobSubmissionClient, address)
        # They tell of every file that is left out, each by a level of its own.
        for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "ray"]:
            logging.getLogger(name).setLevel(logging.ERROR)

    def submit(self, run_id: str, command: Sequence[str], working_dir: Path, env: Mapping[str, str]) -> str:
        """Start ``command`` on the cluster's head, in a copy of ``working_dir``; the job's id.

        That is the run's id or, where a job of this cluster that has ended had it, one that begins so. Raises
        ``UserError`` where a job of the run is under way.
        """
        jobs: list[JobDetails] = self._ask(self._client.list_jobs)
        mine = [job for job in jobs if (job.metadata or {}).get(_RUN) == run_id]
        for job in mine:
            if not job.status.is_terminal():
                raise UserError(
                    f"{run_id} is under way; follow it: ray job logs --follow {job.submission_id}"
                    f" --address {self.address}"
                )
        taken = {job.submission_id for job in jobs}
        # Ray does not give the id of a deleted job away again either.
        ids = (run_id if n == 1 else f"{run_id}-try{n}" for n in range(1, len(taken) + 2))
        submission: str = self._ask(
            self._client.submit_job,
            # The working directory is Ray's and goes with it: what is kept needs another place.
            entrypoint=f'MARIO_DIST_RUNS="${{MARIO_DIST_RUNS:-$HOME/mario-dist-runs}}" {shlex.join(command)}',
            submission_id=next(one for one in ids if one not in taken),
            metadata={_RUN: run_id},
            runtime_env={
                "working_dir": str(working_dir),
                "excludes": list(EXCLUDES),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), **env},
            },
        )
        return submission

    def follow(self, job: str, write: Callable[[str], None]) -> JobDetails:
        """Pass the job's output on until it has ended. A connection that breaks is made anew.

        Raises ``UserError`` where the cluster stays away.
        """
        return asyncio.run(self._follow(job, write))

    async def _follow(self, job: str, write: Callable[[str], None]) -> JobDetails:
        seen, failures = 0, 0
        while True:
            try:
                skip = seen
                async for text in self._client.tail_job_logs(job):
                    fresh, skip = text[skip:], max(0, skip - len(text))
                    seen += len(fresh)
                    if fresh:
                        write(fresh)
                info: JobDetails = self._client.get_job_info(job)
                failures = 0
            except (RuntimeError, OSError, aiohttp.ClientError, AuthenticationError) as error:
                failures += 1
                if failures > _RETRIES:
                    raise self._problem(error) from error
            else:
                if info.status.is_terminal():
                    return info
            await asyncio.sleep(_POLL_S)

    def stop(self, job: str) -> None:
        """Ask it to stop: it gets a SIGTERM, and two minutes to write a checkpoint."""
        self._ask(self._client.stop_job, job)

    def _ask(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (RuntimeError, ValueError, OSError, AuthenticationError) as error:
            raise self._problem(error) from error

    def _problem(self, error: Exception) -> UserError:
        why = " ".join(str(error).split())
        if isinstance(error, AuthenticationError) or re.search(r"status code 40[13]\b", why):
            return UserError(
                f"{self.address} wants a token: set RAY_AUTH_MODE=token, and put the cluster's token into"
                f" ~/.ray/auth_token or RAY_AUTH_TOKEN ({why[:200]})"
            )
        return UserError(f"Ray's Jobs API at {self.address}: {why[:300]}")


def succeeded(job: JobDetails) -> bool:
    """Whether it did what it was to do, or was stopped by a person."""
    return job.status in (JobStatus.SUCCEEDED, JobStatus.STOPPED)


def passed_on(names: Sequence[str]) -> dict[str, str]:
    """Environment variables from ``NAME=VALUE``, or ``NAME`` for its value here.

    Raises ``UserError`` where it has none.
    """
    env: dict[str, str] = {}
    for text in names:
        name, separator, value = text.partition("=")
        if not separator and name not in os.environ:
            raise UserError(f"--env {name}: it is not set here; write --env {name}=VALUE")
        env[name] = value if separator else os.environ[name]
    return env
