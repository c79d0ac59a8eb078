"""The command line: the demo, what is installed, and recipes. Needs typer: ``pip install 'unifreeze[cli]'``."""

import sys
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from . import Recipe, apply
from . import backends as known_backends
from .demo import SCENES, run
from .errors import ArgumentError, UnifreezeError

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

    app.add_typer(_recipe_app(), name="recipe")
    return app


def _recipe_app() -> "Typer":
    import typer

    app = typer.Typer(help="Recipes: what is frozen, as a file. A target is package.module:callable, which returns a model.", no_args_is_help=True)
    source = Annotated[Path, typer.Argument(help="A recipe, JSON or YAML.")]

    @app.command()
    def record(
        target: Annotated[str, typer.Argument(help="package.module:callable, which returns the frozen model or a Freezing.")],
        out: Annotated[Path | None, typer.Option(help="Where to write it: .json, .yaml or .yml; printed if left out.")] = None,
        name: Annotated[str, typer.Option(help="What to call it.")] = "",
    ) -> None:
        """Write the shortest recipe that freezes exactly what is frozen in the model."""
        recipe = Recipe.record(_made(target), name)
        if out is None:
            print(recipe.to_json())
        else:
            recipe.save(out)
        for note in recipe.notes:
            print(note, file=sys.stderr)

    @app.command()
    def show(file: source) -> None:
        """Show a recipe as the calls that it is."""
        print(Recipe.read(file).to_python())

    @app.command()
    def check(file: source, target: Annotated[str | None, typer.Argument(help="A model that it must fit.")] = None) -> None:
        """Check that a recipe can be read and, given a target, that it fits the model. Exits with 2 if not."""
        recipe = Recipe.read(file)
        print(f"{file}: {len(recipe.steps)} steps" + (f"; {apply(_made(target), recipe)!r}" if target else ""))

    @app.command("apply")
    def apply_it(file: source, target: Annotated[str, typer.Argument(help="package.module:callable, which returns a model.")]) -> None:
        """Apply a recipe to the model that the target makes, and print its summary."""
        print(apply(_made(target), Recipe.read(file)).summary())

    return app


def _made(target: str) -> object:
    """Imports and calls what a target names; this runs the user's own code, and no word of a recipe ever does."""
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise ArgumentError(f"{target!r} is no target.\n  It reads package.module:callable, such as mymodels:build.")
    sys.path.insert(0, "")
    try:
        made = reduce(getattr, attribute.split("."), import_module(module))
    except (ImportError, AttributeError) as error:
        raise ArgumentError(
            f"{target!r} can't be found.\n  {error}\n  It reads package.module:callable, and the package must be installed or right here."
        ) from error
    if not callable(made):
        raise ArgumentError(f"{target!r} can't be called.\n  Name a function that returns the model.")
    return made()
