"""``audit``: is it really frozen? For people who freeze by hand, and for CI."""

from typing import Annotated

import typer

import unifreeze

from .ending import FOUND
from .options import Arguments, Debug, Form, Format, Json, Target, form
from .output import Lines, put, say
from .target import built, called


def audit(
    target: Target,
    optimizer: Annotated[
        str | None, typer.Option(metavar="TARGET", help="package.module:callable, which is given the model and returns what trains it.", show_default=False)
    ] = None,
    trainable: Annotated[str | None, typer.Option(metavar="SELECTOR", help="What you mean to train.", show_default=False)] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="CODE", help="A code to leave out, such as UF104; may be repeated.", show_default=False)] = None,
    arg: Arguments = None,
    format: Form = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Look for what is frozen in name only. Exits with 1 if there is an error or a warning."""
    how = form(format, json)
    model = built(target, arg)
    report = unifreeze.audit(model, called(optimizer, model) if optimizer else None, trainable=trainable, ignore=ignore or ())
    if how is Format.table:
        put(report)
    else:
        rows = [(one.code, one.severity, ", ".join(one.paths), one.why, one.repair) for one in report]
        Lines(("Code", "Severity", "Where", "Why", "Repair"), rows).show(how, report.to_dict())
        say(report.verdict())
    raise typer.Exit(0 if report.ok else FOUND)
