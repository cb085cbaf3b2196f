"""`lightly-distill inspect`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightly_distill.inspect import describe

ABOUT = "Tells what a synthetic set is: sizes, provenance, pictures."


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("set", type=str, metavar="DIR", help="Synthetic set, or the run that made it.")


def run(options: Namespace) -> None:
    """Runs the command."""
    print(describe(Path(options.set)))
