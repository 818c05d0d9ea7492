"""[CONFIG] [KEY=VALUE]...: how commands take a run's configuration."""

from collections.abc import Sequence
from pathlib import Path

from mario_dist import config as configuration
from mario_dist.config import RunConfig

DEFAULT = "ppo-1-1.yaml"


def read_config(arguments: Sequence[str], default: str = DEFAULT, directory: Path = Path()) -> RunConfig:
    """A first word without "=" names the file, in ``directory``; the others override its keys.

    Without such a word it is ``default``, one of those that come with the package. Raises ``UserError``.
    """
    named = bool(arguments) and "=" not in arguments[0]
    path = directory / arguments[0] if named else _shipped(default)
    return configuration.load(path, arguments[1:] if named else arguments)


def _shipped(name: str) -> Path:
    """configs/ in the current directory, in the source tree, or as installed with the package."""
    package = Path(__file__).parents[1]
    places = [folder / "configs" / name for folder in (Path(), package.parent, package)]
    return next((path for path in places if path.is_file()), places[0])
