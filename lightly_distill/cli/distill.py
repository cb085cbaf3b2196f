"""`lightly-distill distill`."""

import dataclasses
import logging
import shlex
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lightly_distill.cli.options import (
    PROGRAM,
    SOURCE_HELP,
    TARGET_HELP,
    config_option,
    given_target,
    representations_option,
    target_options,
)
from lightly_distill.data.locate import locate
from lightly_distill.data.reading import Reading, as_range
from lightly_distill.errors import UsageError
from lightly_distill.method.auto import AUTO, suited_settings
from lightly_distill.method.config import PRESETS, DistillConfig, make_config
from lightly_distill.models.students import check_names
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runs.stage import DistillationStage
from lightly_distill.runs.trackers import Trackers
from lightly_distill.runtime.processes import is_main

ABOUT = "Distils real images and a self-supervised model into a synthetic set."
EPILOG = (
    "SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 end a run after the step in hand, with a checkpoint for --resume; a second "
    "one ends it at once. During the warm-up of the pool, before the first step, there is none yet. Exit status: 0 "
    "done, 1 a failure, 2 wrong usage, 128 + the number of the signal that ended it: 130 SIGINT, 138 SIGUSR1, 143 "
    "SIGTERM."
)
Preset = Literal["auto", "cifar", "tinyimagenet", "imagenet64"]

_logger = logging.getLogger(__name__)

PRESET_HELP = "Defaults. auto: what suits number and size of the images. cifar, tinyimagenet, imagenet64: the paper's."


def preset_defaults(options: Namespace) -> dict[str, Any]:
    """Returns the settings that a preset makes the defaults.

    Raises:
        UsageError: If it is `auto`, and the images are not given or cannot be found.
    """
    if options.preset != AUTO:
        return PRESETS[options.preset]
    if options.data is None:
        raise UsageError("--preset auto looks at the images: give --data.")
    reading = Reading(options.num_workers, options.column, options.value_range and as_range(options.value_range))
    return suited_settings(options.data, options.image_size, reading)


def config_of_run(options: Namespace) -> list[str]:
    """Returns the options that take what a run was started with, where it is to go on and they do not say.

    Raises:
        UsageError: If there is nothing to go on with.
    """
    if not options.resume or options.out is None or options.config or (options.data and options.target):
        return []
    config = options.out / "config.yaml"
    if not config.is_file():
        RunFolder.check(options.out, resume=True, overwrite=False)  # before options are missing that are not needed
        return []
    return ["--config", str(config)]


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    stage_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Output folder.")
    parser.add_argument("--resume", action="store_true", help="Go on from the newest checkpoint in --out.")
    parser.add_argument(
        "--strict", action="store_true", help="Refuse to go on from an older checkpoint if the newest is damaged."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an old run in --out.")
    parser.add_argument(
        "--log-with",
        type=str | None,
        default=None,
        metavar="NAME[,NAME]",
        help="Trackers that are given settings and measurements: tensorboard, wandb, mlflow and what else Accelerate "
        "knows. metrics.jsonl has them always.",
    )


def stage_options(parser: ArgumentParser, skip: Collection[str] = ()) -> None:
    """Declares what decides a synthetic set: source, target, and the configuration without the fields in `skip`."""
    config_option(parser)
    parser.add_argument("--data", type=str, required=True, metavar="SRC", help=SOURCE_HELP)
    parser.add_argument("--target", type=str, required=True, metavar="SPEC", help=TARGET_HELP)
    target_options(parser)
    representations_option(parser, "in the folder of the run")
    parser.add_argument("--preset", type=Preset | None, default=None, help=PRESET_HELP)
    parser.add_class_arguments(DistillConfig, nested_key=None, skip=set(skip))


def stage_config(options: Namespace) -> DistillConfig:
    """Returns the configuration that the options of `stage_options` give."""
    fields = {field.name for field in dataclasses.fields(DistillConfig)}
    return make_config(**{name: value for name, value in options.as_dict().items() if name in fields})


def run(options: Namespace) -> None:
    """Runs the command."""
    # what is quickly seen to be wrong comes before the target, which may be a download
    if is_main():
        RunFolder.check(options.out, resume=options.resume, overwrite=options.overwrite)
    trackers = None
    if options.log_with:
        trackers = Trackers([name.strip() for name in options.log_with.split(",")], options.out)
    locate(options.data)
    config = stage_config(options)
    check_names(config.students)
    if options.resume and is_main():
        RunFolder.check_settings(options.out, config)
        for file in options.config or []:
            _logger.info("Going on with the settings in %s; other options have the last word.", file)
    target = given_target(options)
    stage = DistillationStage(target, config=config)
    flags = {name: options[name] for name in ("resume", "overwrite", "strict")}
    with trackers or nullcontext():
        synthetic = stage.run(
            options.data, out=options.out, log=trackers, representations=options.representations, **flags
        )
    if not is_main():
        return
    losses = synthetic.provenance["heldout_loss"]
    if losses["initial"] is not None and losses["final"] is not None:
        print(f"Outer loss on held-out real images: {losses['initial']:.4g}, now {losses['final']:.4g}.")
    for name, loss in losses.get("by_student", {}).items():
        print(f"    of {name}: {loss['initial']:.4g}, now {loss['final']:.4g}")
    out = shlex.quote(str(options.out))
    print(f"Next: {PROGRAM} pretrain --set {out} --student NAME --out DIR")
    print(f"Before you share it: {PROGRAM} publish {out} OWNER/NAME --dry-run DIR looks for near copies.")
