"""The `kvloom` program: assembles the commands and is the one edge where errors become messages and exit codes.

Knows no command's inside. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from kvloom.cli.commands import (
    ask,
    batch,
    bench,
    chat,
    checkup,
    chunks,
    context,
    demo,
    fit,
    keys,
    libraries,
    memory,
    models,
    serve,
    sessions,
    summarize,
    truncate,
    window,
)
from kvloom.cli.options import JSON_ONLY, Options, takes
from kvloom.cli.output import Output
from kvloom.errors import CancelledError, KvloomError, UsageError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What writing fails with where there is no room."""

app = typer.Typer(
    name="kvloom",
    help="A context manager for local LLMs: files become chunks whose KV cache is computed once, stored, and woven "
    "into any context.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for module in (chat, ask, demo, summarize, window, truncate, models, fit, memory, checkup, serve, batch):
    module.register(app)
app.add_typer(chunks.app, name="chunks")
app.add_typer(libraries.app, name="libraries")
app.add_typer(sessions.app, name="sessions")
app.add_typer(context.app, name="context")
app.add_typer(keys.app, name="keys")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kvloom {installed_version()}")  # noqa: T201 - the edge
        raise typer.Exit


def installed_version() -> str:
    from importlib.metadata import version

    return version("kvloom")


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command("version")
@takes(JSON_ONLY)
def show_version(options: Options) -> None:
    """Show the version."""
    version = installed_version()
    options.output.emit({"version": version}, f"kvloom {version}")


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; the exit code: 0, 1 for a failure, 2 for wrong usage, 130 for an interrupt."""
    output = Output(json="--json" in arguments)
    try:
        code = get_command(app).main(list(arguments), prog_name="kvloom", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # at the interpreter's end nobody would say in words why that fails
        return code if isinstance(code, int) else EXIT_OK
    except typer.TyperException as exc:
        return _wrong_usage(exc, output)
    except (CancelledError, KeyboardInterrupt, typer.Abort) as exc:
        return _interrupted(exc, output)
    except BrokenPipeError:
        # Whoever read our output has enough; the interpreter's own flush at exit must not complain either.
        _drop_stdout()
        return EXIT_FAILED
    except OSError as exc:
        output.error((exc.errno in _FULL and _unwritten()) or exc)
        return EXIT_FAILED
    except KvloomError as exc:
        output.error(exc)
        return EXIT_FAILED
    except Exception as exc:  # noqa: BLE001 - the CLI edge: never a traceback
        output.error(exc)
        return EXIT_FAILED


def _unwritten() -> KvloomError | None:
    """What is said of standard output, where that is what is full: a line more cannot be written either."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as exc:
        _drop_stdout()
        return KvloomError(f"the output cannot be written: {exc.strerror or exc}; make room, or send it elsewhere")
    return None


def _drop_stdout() -> None:
    """Standard output goes nowhere from here on, also what it still holds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted(error: BaseException, output: Output) -> int:
    """What was stopped, where somebody knows: a person who pressed Ctrl-C sees that it was, a program does not."""
    if output.is_json:
        output.error(error if isinstance(error, CancelledError) else CancelledError("interrupted"))
    elif isinstance(error, CancelledError):
        output.note(str(error))
    return EXIT_INTERRUPTED


def _wrong_usage(error: typer.TyperException, output: Output) -> int:
    if error.exit_code == EXIT_USAGE and not error.format_message():
        # No arguments: the help was shown.
        return EXIT_USAGE
    if output.is_json:
        output.error(UsageError(error.format_message()))
    else:
        # Every exception that typer raises for wrong usage can show itself with the command's usage line.
        show = getattr(error, "show", None)
        if show is not None:
            show()
        else:
            output.error(UsageError(error.format_message()))
    return error.exit_code


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
