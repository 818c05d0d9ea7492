"""Processes that begin at one moment."""

import subprocess
import sys
from collections.abc import Sequence


def run_together(script: str, arguments: Sequence[Sequence[str]]) -> None:
    """A process of ``script`` for each of ``arguments``: it prints ready, and goes on once it reads a line.

    All must end well.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *own], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for own in arguments
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
