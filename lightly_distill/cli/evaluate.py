"""`lightly-distill evaluate`."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lightly_distill.cli.options import (
    SET_HELP,
    Several,
    config_option,
    config_written,
    given_target,
    recipe_option,
    representations_option,
    several,
    target_options,
)
from lightly_distill.errors import UsageError
from lightly_distill.evaluation import findings
from lightly_distill.evaluation.baselines.arms import ARMS, BASELINES
from lightly_distill.evaluation.evaluate import check_folder, evaluate
from lightly_distill.evaluation.plan import TransferConfig, student_names
from lightly_distill.evaluation.probes import PROBES
from lightly_distill.models.students import check_names
from lightly_distill.synthetic.pretrain import PretrainConfig, find_recipe

ABOUT = "Tries students that were pre-trained on a set and on what it has to beat on labelled tasks, writes a report."
INTERRUPTED = "; the same command with --resume goes on with the evaluation, where an arm was finished"
_AS_TEXT = {"baselines", "probes", "labels", "seeds"}  # fields whose options take one text, or a checked number
_OF_RECIPE = {field.name for field in fields(PretrainConfig)} - {"lr"}  # in a sweep --steps are of the distillation


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    config_option(parser)
    parser.add_argument("--set", type=str, required=True, metavar="DIR_OR_HUB", help=SET_HELP)
    parser.add_argument("--student", type=str, required=True, metavar="NAME[,NAME]", help="timm names of backbones.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="New folder for results and report.")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on with the evaluation in --out; there may be more arms, students and seeds than before.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the evaluation in --out.")
    transfer_options(parser, TransferConfig(), BASELINES)
    parser.add_argument(
        "--arm",
        action=Several,
        default=[],
        metavar="NAME=DIR",
        help="Another set to compare. May be repeated.",
    )
    parser.add_argument("--data", type=str | None, default=None, metavar="SRC", help="Default: that of the set's run.")
    parser.add_argument(
        "--target", type=str | None, default=None, metavar="SPEC", help="Default: that of the set's run."
    )
    target_options(parser)
    representations_option(parser, "those of the set's run, or they are computed")


def transfer_options(
    parser: ArgumentParser, default: TransferConfig, arms: Iterable[str], skip: Collection[str] = ()
) -> None:
    """Declares how students are tried on tasks.

    Args:
        parser: Of the command.
        default: The settings without options.
        arms: Names of the baselines that there are.
        skip: Fields of `TransferConfig` that are declared elsewhere.
    """
    parser.add_argument(
        "--task",
        action=Several,
        required=True,
        metavar="SRC",
        help="Labelled images as for --data, with a split to learn from (train) and one to test on (test, validation, "
        "valid or val). Folders: birds/train/CLASS/ and birds/test/CLASS/, or birds/CLASS/, of which a fifth is for "
        "testing; --task birds. Read with --column and --value-range, as --data is. May be "
        "repeated.",
    )
    parser.add_argument(
        "--baselines",
        type=str,
        default=",".join(default.baselines),
        metavar="ARM[,ARM]",
        help=f"What the set is compared with. {_explained({name: ARMS[name].words for name in arms})}.",
    )
    parser.add_argument(
        "--probe",
        type=str,
        default=",".join(default.probes),
        metavar="NAME[,NAME]",
        help=f"How students are tried. {_explained({name: probe.words for name, probe in PROBES.items()})}.",
    )
    parser.add_argument(
        "--labels",
        default="all",
        metavar="N[,N]",
        help="Labelled images that a task is learned from: a number, a share as 1% or 0.01, or all.",
    )
    parser.add_argument("--seeds", type=PositiveInt, default=3, help="Repetitions, each with its own draws.")
    recipe_option(parser)
    parser.add_argument(
        "--pretrain-steps",
        type=PositiveInt | None,
        default=None,
        metavar="N",
        help="Training steps of pre-training; twice as many on several times the bytes, and in the arm full four times "
        "as many at least. Default: those of the recipe.",
    )
    parser.add_class_arguments(TransferConfig, nested_key=None, skip=_AS_TEXT | _OF_RECIPE | set(skip))


def transfer_config(options: Namespace, skip: Collection[str] = ()) -> TransferConfig:
    """Returns the settings that the options of `transfer_options` give."""
    declared = {field.name for field in fields(TransferConfig)} - _AS_TEXT - _OF_RECIPE - set(skip)
    recipe = find_recipe(options.recipe)
    own = {name: getattr(recipe, name) for name in _OF_RECIPE}
    if options.pretrain_steps is not None:
        own["steps"] = options.pretrain_steps
    return TransferConfig(
        **own,
        **{name: options[name] for name in declared},
        baselines=listed(options.baselines),
        probes=listed(options.probe),
        labels=[_label_count(text) for text in listed(options.labels)],
        seeds=options.seeds,
    )


def run(options: Namespace) -> None:
    """Runs the command."""
    pairs = [arm.partition("=")[::2] for arm in several(options.arm)]
    others = dict(pairs)
    for name, folder in pairs:
        if not (name and folder):
            raise UsageError(f"--arm takes NAME=DIR, such as earlier=runs/earlier; got '{name}{folder}'.")
    if len(others) < len(pairs):
        raise UsageError(f"Two --arm have one name: {', '.join(name for name, _ in pairs)}.")
    config = transfer_config(options)  # before the target, which may be a download
    flags = {name: options[name] for name in ("resume", "overwrite")}
    check_folder(options.out, **flags)
    check_names(student_names(options.student))
    target = given_target(options)
    with config_written(options, options.out):
        results = evaluate(
            options.set,
            options.student,
            several(options.task),
            data=options.data,
            target=target,
            representations=options.representations,
            others=others,
            out=options.out,
            config=config,
            **flags,
        )
    for line in findings.lead(results):
        print(line)
    print(f"Report: {options.out / 'report.html'}, tables: {options.out / 'report.md'}")


def listed(given: Any) -> list[str]:
    """Returns the parts of a comma separated option; a file may have a number or a list instead."""
    return [part.strip() for text in several(given) for part in text.split(",") if part.strip()]


def _explained(meanings: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items())


def _label_count(text: str) -> "int | float | None":
    if text in ("all", "100%"):
        return None
    share = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if share else 1)
    except ValueError:
        value = -1
    if not (0 < value < 1 or (not share and value >= 1 and value % 1 == 0)):
        raise UsageError(f"--labels takes whole numbers, shares such as 1%, or all; got '{text}'.")
    return value if value < 1 else int(value)
