"""The command line: the demo, and what is installed. Needs typer: ``pip install 'unifreeze[cli]'``."""

import sys
from typing import TYPE_CHECKING, Annotated

from . import backends as known_backends
from .demo import SCENES, run
from .errors import UnifreezeError

if TYPE_CHECKING:
    from typer import Typer


def main() -> None:
    """Runs the command line; an error that is ours is a sentence and exit status 2, without a traceback."""
    try:
        _app()()
    except UnifreezeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)


def _app() -> "Typer":
    try:
        import typer
    except ImportError:
        raise UnifreezeError("The command line needs typer, which is not installed.\n  install it with pip install 'unifreeze[cli]'") from None

    app = typer.Typer(help="Freeze layers in Keras 3, PyTorch and JAX, and prove that they stay frozen.", no_args_is_help=True, add_completion=True)

    @app.command()
    def demo(
        framework: Annotated[str | None, typer.Option(help=f"One of {', '.join(SCENES)}; the first installed one if left out.")] = None,
        steps: Annotated[int, typer.Option(min=1, help="Number of training steps.")] = 5,
    ) -> None:
        """Freeze the first two layers of a GoogLeNet, train it, and prove what moved. Exits with 1 if the proof fails."""
        from rich.console import Console

        if framework is not None and framework not in SCENES:
            raise typer.BadParameter(f"{framework!r} has no demo; it is one of {', '.join(SCENES)}", param_hint="--framework")
        raise typer.Exit(0 if run(Console(), framework, steps) else 1)

    @app.command()
    def backends() -> None:
        """List the backends: what is installed, and how to install the rest."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("backend", "version", "state")
        for info in known_backends():
            table.add_row(info.name, info.version, "installed" if info.installed else Text(info.install))
        Console().print(table)

    return app
