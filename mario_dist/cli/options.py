"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

TARGET_HELP = (
    "A run id, 'latest', a checkpoint's path, zoo:1-1, a registered model (models:/NAME@ALIAS or"
    " models:/NAME/VERSION), or baseline:random."
)

Rom = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Your own ROM file: refused unless it is the game that is installed, which is then played.",
    ),
]
