"""The command line `moxin`: thin commands over the other modules of `flows`.

moxin run --profile tiny            the whole DAG here, with what it needs started first
moxin plan --select pretrain_1+     what a run would do, and why
moxin why pretrain_2                which field, input or code changed
"""

from __future__ import annotations

import errno
import io
import os
import sys
from gc import set_threshold
from typing import Any, cast

import typer

from flows.cli import images, suite
from flows.cli.adopting import adopt
from flows.cli.checks import check
from flows.cli.common import err
from flows.cli.experiments import compare, experiments
from flows.cli.exporting import export
from flows.cli.garbage import gc
from flows.cli.planning import plan, why
from flows.cli.rehearsing import rehearse
from flows.cli.release import release
from flows.cli.repairing import repair
from flows.cli.results import lineage, logs, ls, report, show
from flows.cli.running import run
from flows.cli.services import down, status, up
from flows.cli.sweeping import sweep
from flows.cli.tables import tables
from flows.cli.tags import tag
from flows.cli.verify import verify
from flows.cli.watching import tensorboard, watch
from flows.terminal_text import line
from stages.core.errors import ConfigError, StageError
from stages.core.processes import no_core_files

COLLECTED_AFTER = (50_000, 20, 100)
"""Python's thresholds of garbage collection (`gc.set_threshold`): by its own, 700 objects, a fifth of the time in which
Prefect is imported goes by looking for garbage among classes that stay.
"""

UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG)
"""What the system says of a path that a user has named."""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich's boxes take as long as all the rest of `moxin --help`
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Moxin: the whole way from raw pages to a fully open LLM, as one resumable DAG.",
)
for _command in (
    plan,
    why,
    run,
    watch,
    sweep,
    rehearse,
    ls,
    show,
    logs,
    lineage,
    report,
    tensorboard,
    compare,
    experiments,
):
    app.command()(_command)
for _command in (adopt, tag, export, tables, release, verify, check, repair, gc, up, down, status):
    app.command()(_command)
app.add_typer(images.app, name="images")
app.add_typer(suite.app, name="suite")


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and status 2; other failures are status 1."""
    set_threshold(*COLLECTED_AFTER)
    no_core_files()  # what it starts inherits that: the services, the worker and its flows, stages
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal of another encoding shows an escape, not a traceback
    try:
        code = app(standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except typer.TyperException as error:  # an unknown command or option, a missing argument; without any: the help
        if not sys.argv[1:]:
            cast(Any, error).show()  # typer's NoArgsIsHelpError, a class that it does not export
            sys.exit(0)
        command = getattr(getattr(error, "ctx", None), "command_path", "moxin")
        _fail(f"{error.format_message()} (see '{command} --help')", 2)
    except ConfigError as error:
        _fail(str(error), 2)
    except StageError as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted; what had finished is in the ledger, the next run continues from there", soft_wrap=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except OSError as error:  # of a path that a user has named: others are faults of the code
        home, path = os.environ.get("MOXIN_HOME"), str(error.filename or "")
        named = (
            f"; MOXIN_HOME = {home}: set it to a folder that you may write" if home and path.startswith(home) else ""
        )
        if not path or not (named or error.errno in UNUSABLE):
            raise
        _fail(f"{path} cannot be used: {error.strerror}{named}", 2)


def _fail(message: str, code: int) -> None:
    err.print(line(("error:", "red"), f" {message}"), soft_wrap=True)
    sys.exit(code)
