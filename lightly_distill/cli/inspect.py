"""`lightly-distill inspect`."""

from jsonargparse import ArgumentParser, Namespace

from lightly_distill.cli.options import SET_HELP
from lightly_distill.synthetic.describe import describe

ABOUT = "Tells what a synthetic set is: sizes, provenance, pictures."


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("set", type=str, metavar="DIR_OR_HUB", help=SET_HELP)


def run(options: Namespace) -> None:
    """Runs the command."""
    print(describe(options.set))
