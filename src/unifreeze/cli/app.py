"""The commands, put together. A further command is a function with its line here."""

import typer

from . import around, looking, recipe

app = typer.Typer(
    help="Freeze layers in Keras 3, PyTorch and JAX, and prove that they stay frozen.",
    epilog="Exit status: 0 all is well; 1 something was found, or a proof failed; 2 wrong use, or an error of unifreeze; 3 the target's own code raised.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (looking.layers, looking.summary, looking.freeze, around.backends, around.demo):
    app.command()(command)
app.add_typer(recipe.app, name="recipe")
