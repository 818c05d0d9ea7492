"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Rom = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Your own ROM file: refused unless it is the game that is installed, which is then played.",
    ),
]
