"""Train levels one after the other by configs/levels, and put each into the zoo where it does better there.

uv run python scripts/train_levels.py 1-2 1-3 --init zoo:1-1 [key=value ...]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="+", metavar="LEVEL|KEY=VALUE")
    parser.add_argument("--init", help="a TARGET with whose network each training begins")
    arguments = parser.parse_args()
    levels = [word for word in arguments.words if "=" not in word]
    overrides = [word for word in arguments.words if "=" in word]
    init = ["--init", arguments.init] if arguments.init else []
    for level in levels:
        print(f"{level}:", flush=True)
        config = str(ROOT / "configs" / "levels" / f"{level}.yaml")
        run = json.loads(mario_dist("train", config, *overrides, *init, "--json"))["run_id"]
        judged = [sys.executable, str(ROOT / "scripts" / "add_to_zoo.py"), run, "--if-better"]
        subprocess.run(judged, check=True)


def mario_dist(*words: str) -> str:
    """The output of a command, whose progress goes to standard error."""
    command = [str(Path(sys.executable).with_name("mario-dist")), *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
