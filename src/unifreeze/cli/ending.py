"""How a command ends: an exit status, and an error as a sentence (a traceback with ``--debug``, JSON with ``--json``)."""

import itertools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from unifreeze.errors import UnifreezeError, UnifreezeWarning

from .target import TargetError

#: Exit status, beside 0: something was found or a proof failed; wrong use or an error of ours; the user's code, or anything unforeseen.
FOUND, WRONG, FOREIGN = 1, 2, 3
_GONE = 141

# Which package the class comes from depends on the version of typer; the exported child does not.
_UsageError: Any = typer.BadParameter.mro()[1]


def run(app: typer.Typer, words: Sequence[str]) -> int:
    """Runs a command, and returns its exit status."""
    as_json, debug = _asks_for_json(words), "--debug" in words
    with warnings.catch_warnings():
        warnings.simplefilter("always", UnifreezeWarning)
        warnings.showwarning = _warned(warnings.showwarning, as_json=as_json)
        try:
            status = int(typer.main.get_command(app).main(list(words), prog_name="unifreeze", standalone_mode=False) or 0)
            sys.stdout.flush()
        except (BrokenPipeError, SystemExit) as gone:
            if isinstance(gone, SystemExit) and not gone.code:  # completion ends so
                return 0
            # typer exits by itself, with 1, where the reader of a pipe has gone; and Python would complain once more when it closes what it could not flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return _GONE
        except (typer.Abort, KeyboardInterrupt):
            return 130
        except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a sentence
            return _end(error, as_json=as_json, debug=debug)
        return status


def _asks_for_json(words: Sequence[str]) -> bool:
    """Looks at the words themselves: an error in reading them must have the right form, too."""
    return "--json" in words or "--format=json" in words or ("--format", "json") in itertools.pairwise(words)


def _end(error: Exception, *, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exception(error.__cause__ if isinstance(error, TargetError) else error)
    kind, message, status, hint = _told(error)
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": message, "exit": status}}, ensure_ascii=False), file=sys.stderr)
    elif type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
    else:
        print("\n".join(filter(None, (f"{kind}: {message}", "" if debug else hint))), file=sys.stderr)
    return status


def _told(error: Exception) -> tuple[str, str, int, str]:
    """The kind of an error, what it says, the exit status, and what to do next."""
    if isinstance(error, _UsageError):
        where = f"{error.ctx.command_path} --help shows how to use it." if getattr(error, "ctx", None) else ""
        return "UsageError", error.format_message(), WRONG, f"  {where}"
    if isinstance(error, UnifreezeError):
        return type(error).__name__, str(error), WRONG, ""
    if isinstance(error, TargetError):
        return "TargetError", f"{error}\n  {_place(error.__cause__)}", FOREIGN, "  --debug shows the whole way there."
    if isinstance(error, OSError) and error.filename:
        return type(error).__name__, f"{error.filename}: {error.strerror}", WRONG, "  Name a file that can be read, or written, there."
    return type(error).__name__, str(error), FOREIGN, "  This was not foreseen. --debug shows where it comes from; please report it."


def _place(error: BaseException | None) -> str:
    """Where the user's code raised."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    return f"at {frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}" if frames else ""


def _warned(usual: Any, *, as_json: bool) -> Any:
    """A warning of ours is a sentence; others stay as they are."""

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if not issubclass(category, UnifreezeWarning):
            usual(message, category, *rest)
        elif as_json:
            print(json.dumps({"warning": str(message)}, ensure_ascii=False), file=sys.stderr)
        else:
            print(f"warning: {message}", file=sys.stderr)

    return show
