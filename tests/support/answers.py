"""What a command of `mario-dist` should have said."""

import json
from typing import Any

from support.commands import Result


def ok(result: Result) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def answer(result: Result) -> Any:
    return json.loads(ok(result))


def refused(result: Result) -> str:
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")
