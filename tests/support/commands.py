"""What a command of `mario-dist` gave back."""

from dataclasses import dataclass


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str
