"""`lightly-distill demo`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

ABOUT = (
    "The whole story in minutes on a laptop: trains a small target with Lightly on handwritten digits, distils, "
    "pre-trains a student, compares it with baselines, draws pictures."
)


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="Output folder.")
    parser.add_argument("--seed", type=int, default=0, help="Root of every random draw.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an old demo in --out.")


def run(options: Namespace) -> None:
    """Runs the command."""
    # the demo trains its target with Lightly, so it lives with the adapters; here, as it takes seconds to import
    from lightly_distill_integrations import demo

    demo.run(options.out, seed=options.seed, overwrite=options.overwrite)
