"""The command line: the verbs at a prompt. Needs typer: ``pip install 'unifreeze[cli]'``.

One room is one idea: ``target`` makes the model; ``looking``, ``recipe`` and ``around`` hold the commands; ``output`` prints; ``ending`` makes an
exit status of what came of it; ``options`` has the words that commands share; ``app`` puts the commands together.
"""

import sys


def main() -> None:
    """Runs the command line and exits; the documented exit status says how it went."""
    try:
        from .app import app
        from .ending import run
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit(_without_typer())
    sys.exit(run(app, sys.argv[1:]))


def _without_typer() -> int:
    print("UnifreezeError: The command line needs typer, which is not installed.\n  install it with pip install 'unifreeze[cli]'", file=sys.stderr)
    return 2
