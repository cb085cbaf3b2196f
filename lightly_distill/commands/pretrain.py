"""`lightly-distill pretrain`."""

import textwrap
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightly_distill.pretrain import pretrain
from lightly_distill.students import find_adapter
from lightly_distill.synthetic import SyntheticSet

ABOUT = "Pre-trains a timm backbone on a synthetic set."


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--set", type=str, required=True, metavar="DIR", help="Synthetic set, or the run that made it.")
    parser.add_argument("--student", type=str, required=True, metavar="NAME", help="timm name of the backbone.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for the backbone.")
    parser.add_function_arguments(pretrain, nested_key=None, skip={"student", "synthetic", "out", "progress"})


def run(options: Namespace) -> None:
    """Runs the command."""
    settings = {name: value for name, value in options.as_dict().items() if name not in {"set", "debug"}}
    backbone = pretrain(synthetic=SyntheticSet.load(options.set), **settings)
    adapter, name = find_adapter(options.student)
    print(f"Wrote {options.out}. To use it:")
    print(textwrap.indent(adapter.how_to_load(backbone, name, str(options.out)), "    "))
