"""mario-dist: parse, call, exit code."""

import sys
import traceback

import typer

from mario_dist.cli.bench_faults import bench_app
from mario_dist.cli.db import db_app
from mario_dist.cli.doctor import doctor
from mario_dist.cli.evaluate import evaluate_command
from mario_dist.cli.models import models_app
from mario_dist.cli.play import play
from mario_dist.cli.report import report_command
from mario_dist.cli.runs import runs_app
from mario_dist.cli.submit import submit_command
from mario_dist.cli.train import train_command
from mario_dist.cli.watch import watch_command
from mario_dist.errors import UserError

app = typer.Typer(
    name="mario-dist",
    no_args_is_help=True,
    add_completion=False,
    help="Train agents to play Super Mario Bros. Add --debug to any command for a traceback.",
)
app.command("train")(train_command)
app.command("submit")(submit_command)
app.command("eval")(evaluate_command)
app.command("play")(play)
app.command("watch")(watch_command)
app.add_typer(runs_app, name="runs")
app.add_typer(models_app, name="models")
app.add_typer(db_app, name="db")
app.add_typer(bench_app, name="bench")
app.command("report")(report_command)
app.command("doctor")(doctor)

# Typer keeps its copy of click private; this is click's UsageError, the base of what a bad argument raises.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
_LONGEST = 2000
"""Characters of an error's line."""


def main() -> None:
    """Run the command line: exit code 0, 1 for what the user can mend, 2 for usage, 130 for Ctrl-C."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments, standalone_mode=False)
    except UserError as error:
        _fail(str(error), debug)
        code = 1
    except _UsageError as error:
        _fail(f"{_usage(error)} (mario-dist --help)", debug)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", debug)
        code = 130
    except BrokenPipeError:
        # The reader of a pipe went away, as `| head` does.
        code = 0
    except Exception as error:  # the last door: whatever it is, the user gets one line
        _fail(f"unexpected {type(error).__name__}: {error}", debug)
        if not debug:
            print("this is a defect; --debug shows where it happened", file=sys.stderr)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    line = " ".join(message.split())[:_LONGEST]
    # What came from outside must not steer the terminal.
    print("error: " + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line), file=sys.stderr)


def _usage(error: BaseException) -> str:
    format_message = getattr(error, "format_message", None)
    return str(format_message() if format_message is not None else error)


if __name__ == "__main__":
    main()
