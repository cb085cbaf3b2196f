"""`lightly-distill sweep`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightly_distill.cli.distill import stage_config, stage_options
from lightly_distill.cli.evaluate import listed, transfer_config, transfer_options
from lightly_distill.cli.options import config_written, given_target, several
from lightly_distill.data.locate import locate
from lightly_distill.errors import UsageError
from lightly_distill.evaluation.baselines.arms import ARMS, BASELINES
from lightly_distill.evaluation.sweep import sweep_report
from lightly_distill.evaluation.sweep.search import SEARCHABLE
from lightly_distill.evaluation.sweep.sweep import TRANSFER, sweep
from lightly_distill.models.students import check_names
from lightly_distill.runs.stage import DistillationStage

ABOUT = (
    "Distils and evaluates sets of several sizes, and names the smallest that is good enough, what it costs and what "
    "it saves. The same command again goes on where it stopped."
)
INTERRUPTED = "; the same command again goes on with the sweep"
_UNITS = {"k": 10**3, "m": 10**6}
_OF_STAGE = ("device", "num_workers", "column", "value_range")  # declared with the settings of the distillation


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--sizes",
        default="",
        metavar="M,M",
        help="Numbers of synthetic images, increasing, such as 50,100,200,500. More may be given when a sweep goes on.",
    )
    parser.add_argument(
        "--bytes",
        default="",
        metavar="B,B",
        help="Instead of --sizes: bytes on disk, increasing, such as 100k,300k,1M. The sets are compared with random "
        "real images of as many bytes too, and of 2, 5 and 10 times as many, which says what a set is worth.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="New folder, or that of the sweep to go on with."
    )
    parser.add_argument(
        "--search",
        type=str,
        default="",
        metavar="NAME[,NAME]",
        help=f"Search settings before the sizes are distilled, of {', '.join(SEARCHABLE)}. lr: the learning rates of "
        "images and of representations, apart. Judged on held-out images of the source, never on a task. Needs "
        "Optuna: pip install 'lightly-distill[search]'.",
    )
    parser.add_argument(
        "--trials",
        type=int | None,
        default=None,
        metavar="N",
        help="Distillations that the search tries, the first with the settings as given.",
    )
    parser.add_argument(
        "--search-size",
        type=int | None,
        default=None,
        metavar="M",
        help="Which of the sizes the search distils. Default: the smallest.",
    )
    parser.add_argument(
        "--evaluate-student",
        type=str | None,
        default=None,
        metavar="NAME[,NAME]",
        help="Backbones that are tried on the tasks. Default: those of --student.",
    )
    arms = [name for name in BASELINES if "labels" not in ARMS[name].needs]
    transfer_options(parser, TRANSFER, arms, skip=_OF_STAGE)
    stage_options(parser, skip=["num_images"])


def run(options: Namespace) -> None:
    """Runs the command."""
    sizes, budgets = [_size(text) for text in listed(options.sizes)], [_bytes(text) for text in listed(options.bytes)]
    if bool(sizes) == bool(budgets):
        raise UsageError("Give --sizes in images, such as 50,100,200, or --bytes, such as 100k,300k,1M.")
    locate(options.data)  # before the target, which may be a download
    config, transfer = stage_config(options), transfer_config(options, skip=_OF_STAGE)
    check_names([*config.students, *listed(options.evaluate_student or "")])
    target = given_target(options)
    with config_written(options, options.out):
        done = sweep(
            DistillationStage(target, config=config),
            options.data,
            sizes,
            several(options.task),
            out=options.out,
            bytes=budgets,
            student=options.evaluate_student,
            search=listed(options.search),
            trials=options.trials,
            search_size=options.search_size,
            representations=options.representations,
            config=transfer,
        )
    for line in sweep_report.lead(done):
        print(line)
    print(f"Report: {options.out / 'sweep.html'}, tables: {options.out / 'sweep.md'}")


def _bytes(text: str) -> int:
    number = text.lower().removesuffix("b")
    factor = _UNITS.get(number[-1:], 1)
    try:
        return round(float(number.rstrip("km")) * factor)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--bytes takes numbers such as 100k, 300k or 1M; got '{text}'.") from error


def _size(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--sizes takes whole numbers, such as 50,100,200; got '{text}'.") from error
