"""The command line: `lightly-distill COMMAND --help` tells what each does."""

import dataclasses
import importlib
import logging
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import PositiveInt

from lightly_distill import findings
from lightly_distill.config import PRESETS, DistillConfig, did_you_mean, make_config
from lightly_distill.errors import UsageError
from lightly_distill.evaluation import ARMS, evaluate
from lightly_distill.inspect import describe
from lightly_distill.locate import locate
from lightly_distill.pretrain import pretrain
from lightly_distill.probes import PROBES
from lightly_distill.run_folder import RunFolder
from lightly_distill.stage import DistillationStage
from lightly_distill.students import find_adapter
from lightly_distill.synthetic import SyntheticSet
from lightly_distill.targets import load_target

PROGRAM = "lightly-distill"
Preset = Literal["cifar", "tinyimagenet", "imagenet64"]

SOURCE_HELP = (
    "Real images: a folder (with or without class folders), a folder or file of parquet or Arrow, a saved Hugging "
    "Face dataset, a Hub dataset id, or "
    "torchvision:NAME; a split is chosen with #split. Names are looked up in $LIGHTLY_DISTILL_DATA too."
)
TARGET_HELP = (
    "The self-supervised model: a checkpoint (.ckpt, .pt, .pth, .safetensors), timm:NAME or torchvision:NAME, "
    "timm:NAME@FILE or torchvision:NAME@FILE with weights in a checkpoint, or pkg.module:callable, a function that "
    "returns a model. No code in a file is run."
)


class _Parser(ArgumentParser):
    """Options with dashes, and errors in one line with the nearest name."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_argument(*(a.replace("_", "-") if a.startswith("--") else a for a in args), **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split())
        unknown = [word for word in message.split() if word.startswith("--")]
        if "nrecognized arguments" in message and unknown:
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            message = f"Unknown option {unknown[0]}.{did_you_mean(unknown[0].split('=')[0], known)}"
        print(f"{self.prog.replace(' [options]', '')}: error: {message} (see --help)", file=sys.stderr)
        sys.exit(2)


def build_parser(preset: str | None = None) -> ArgumentParser:
    """Builds the parser of all commands; a preset gives `distill` its defaults."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog=PROGRAM, description="Distils a large unlabelled image set into a small synthetic one.")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, (about, arguments, _) in COMMANDS.items():
        command = _Parser(description=about)
        arguments(command)
        if preset is not None and name == "distill":
            command.set_defaults(_flat(PRESETS[preset]))
        command.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        commands.add_subcommand(name, command, help=about)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments after the program's name; by default the process's.

    Returns:
        Exit status: 0 done, 1 a failure, 2 wrong usage, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parse(argv)
    except SystemExit as end:
        return int(end.code or 0)
    options = parsed[parsed.command]
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lightly_distill").setLevel(logging.INFO)
    logging.getLogger("lightly_distill_integrations").setLevel(logging.INFO)
    if not options.debug:
        warnings.filterwarnings("ignore")
    try:
        COMMANDS[parsed.command][2](options)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; `distill` goes on from its last checkpoint with --resume", file=sys.stderr)
        return 130
    except Exception as error:  # whatever it is, a user of the command line gets one line
        if options.debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"{PROGRAM}: error: {text}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _parse(argv: Sequence[str]) -> Namespace:
    parser = build_parser()
    parsed = parser.parse_args(argv)
    if not parsed.command:
        parser.print_help()
        sys.exit(2)
    preset = parsed[parsed.command].get("preset")
    if preset is not None:
        # read again over the preset, so that options and files have the last word
        parsed = build_parser(preset).parse_args(argv)
    return parsed


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _target_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--target-class",
        type=str | None,
        default=None,
        metavar="CLASS",
        help="pkg.module:Class of the model in a checkpoint, or a function that returns it, where the weights do not "
        "tell: those of ResNets do.",
    )
    parser.add_argument(
        "--target-encoder",
        type=str | None,
        default=None,
        metavar="PATH",
        help="Attribute path of the encoder inside the model, such as student_backbone. Default: the one that its "
        "method is evaluated with, where the model is made as Lightly's examples are.",
    )


def _distill_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file of options, as a run writes it.")
    parser.add_argument("--data", type=str, required=True, metavar="SRC", help=SOURCE_HELP)
    parser.add_argument("--target", type=str, required=True, metavar="SPEC", help=TARGET_HELP)
    _target_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Output folder.")
    parser.add_argument("--preset", type=Preset | None, default=None, help="Settings of the paper, as defaults.")
    parser.add_argument("--resume", action="store_true", help="Go on from the newest checkpoint in --out.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an old run in --out.")
    parser.add_class_arguments(DistillConfig, nested_key=None)


def _distill(options: Namespace) -> None:
    fields = {field.name for field in dataclasses.fields(DistillConfig)}
    settings = {name: value for name, value in options.as_dict().items() if name in fields}
    # what is quickly seen to be wrong comes before the target, which may be a download
    RunFolder.check(options.out, resume=options.resume, overwrite=options.overwrite)
    locate(options.data)
    config = make_config(**settings)
    target = load_target(options.target, options.target_encoder, options.target_class)
    stage = DistillationStage(target, config=config)
    synthetic = stage.run(options.data, out=options.out, resume=options.resume, overwrite=options.overwrite)
    losses = synthetic.provenance["heldout_loss"]
    if losses["initial"] is not None:
        print(f"Outer loss on held-out real images: {losses['initial']:.4g}, now {losses['final']:.4g}.")
    for name, loss in losses.get("by_student", {}).items():
        print(f"    of {name}: {loss['initial']:.4g}, now {loss['final']:.4g}")
    print(f"Wrote {options.out}. Next: {PROGRAM} pretrain --set {options.out} --student NAME --out DIR")


def _pretrain_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--set", type=str, required=True, metavar="DIR", help="Synthetic set, or the run that made it.")
    parser.add_argument("--student", type=str, required=True, metavar="NAME", help="timm name of the backbone.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for the backbone.")
    parser.add_function_arguments(pretrain, nested_key=None, skip={"student", "synthetic", "out", "progress"})


def _pretrain(options: Namespace) -> None:
    settings = {name: value for name, value in options.as_dict().items() if name not in {"set", "debug"}}
    backbone = pretrain(synthetic=SyntheticSet.load(options.set), **settings)
    adapter, name = find_adapter(options.student)
    print(f"Wrote {options.out}. To use it:")
    print(textwrap.indent(adapter.how_to_load(backbone, name, str(options.out)), "    "))


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--set", type=str, required=True, metavar="DIR", help="Synthetic set, or the run that made it.")
    parser.add_argument("--student", type=str, required=True, metavar="NAME[,NAME]", help="timm names of backbones.")
    parser.add_argument(
        "--task",
        type=str,
        action="append",
        required=True,
        metavar="SRC",
        help="Labelled images as for --data, with a split to learn from (train) and one to test on (test, validation, "
        "valid or val); class folders are labels. May be repeated.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="New folder for results and report.")
    parser.add_argument(
        "--baselines",
        type=str,
        default="scratch,random,kmeans",
        metavar="ARM[,ARM]",
        help=f"What the set is compared with, of {', '.join(name for name in ARMS if name != 'distilled')}.",
    )
    parser.add_argument(
        "--probe", type=str, default="knn,linear", metavar="NAME[,NAME]", help=f"Of {', '.join(PROBES)}."
    )
    parser.add_argument(
        "--labels",
        type=str,
        default="all",
        metavar="N[,N]",
        help="Labelled images that a task is learned from: a number, a share as 1% or 0.01, or all.",
    )
    parser.add_argument("--seeds", type=PositiveInt, default=3, help="Repetitions, each with its own draws.")
    parser.add_argument(
        "--arm",
        type=str,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="Another set to compare. May be repeated.",
    )
    parser.add_argument("--data", type=str | None, default=None, metavar="SRC", help="Default: that of the set's run.")
    parser.add_argument(
        "--target", type=str | None, default=None, metavar="SPEC", help="Default: that of the set's run."
    )
    _target_options(parser)
    parser.add_function_arguments(
        evaluate,
        nested_key=None,
        skip={
            "synthetic",
            "student",
            "tasks",
            "data",
            "target",
            "baselines",
            "others",
            "probes",
            "labels",
            "seeds",
            "out",
        },
    )


def _evaluate(options: Namespace) -> None:
    others = dict(arm.partition("=")[::2] for arm in options.arm)
    for name, folder in others.items():
        if not (name and folder):
            raise UsageError(f"--arm takes NAME=DIR, such as earlier=runs/earlier; got '{name}{folder}'.")
    results = evaluate(
        options.set,
        options.student,
        options.task,
        data=options.data,
        target=options.target and load_target(options.target, options.target_encoder, options.target_class),
        baselines=_listed(options.baselines),
        others=others,
        probes=_listed(options.probe),
        labels=[_label_count(text) for text in _listed(options.labels)],
        seeds=options.seeds,
        epochs=options.epochs,
        full_epochs=options.full_epochs,
        finetune_steps=options.finetune_steps,
        device=options.device,
        out=options.out,
    )
    for line in findings.lead(results):
        print(line)
    print(f"Report: {options.out / 'report.html'}, tables: {options.out / 'report.md'}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _label_count(text: str) -> "int | float | None":
    if text in ("all", "100%"):
        return None
    share = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if share else 1)
    except ValueError:
        value = -1
    if value <= 0 or (share and value > 1):
        raise UsageError(f"--labels takes numbers, shares such as 1%, or all; got '{text}'.")
    return value if value < 1 else int(value)


def _inspect_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("set", type=str, metavar="DIR", help="Synthetic set, or the run that made it.")


def _inspect(options: Namespace) -> None:
    print(describe(Path(options.set)))


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="Output folder.")
    parser.add_argument("--seed", type=int, default=0, help="Root of every random draw.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an old demo in --out.")


def _demo(options: Namespace) -> None:
    # the demo trains its target with Lightly, so it lives with the adapters
    demo = importlib.import_module("lightly_distill_integrations.demo")
    demo.run(options.out, seed=options.seed, overwrite=options.overwrite)


def _students_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--image-size", type=PositiveInt, required=True, metavar="S", help="Height and width of the images, in pixels."
    )
    parser.add_argument("--name", type=str, default="*", metavar="PATTERN", help="Of names, such as 'resnet*'.")


def _students(options: Namespace) -> None:
    adapter, pattern = find_adapter(options.name)
    size = options.image_size
    tried = adapter.list_students(size, pattern)
    if not tried:
        raise UsageError(f"No student's name matches '{options.name}': * stands for any letters, ? for one.")
    fitting = {name: facts for name, facts in tried.items() if facts is not None}
    width = max(map(len, fitting), default=0)
    for name, facts in sorted(fitting.items(), key=lambda item: item[1].parameters):
        print(f"{name:{width}} {facts.parameters / 1e6:9.2f} M parameters {facts.features:6d} features")
    print(f"{len(fitting)} of {len(tried)} names fit images of {size}x{size}.")


# name: what it does, how its options are declared, how it is run
COMMANDS: dict[str, tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], None]]] = {
    "demo": (
        "The whole story in minutes on a laptop: trains a small target with Lightly on handwritten digits, distils, "
        "pre-trains a student, compares it with baselines, draws pictures.",
        _demo_arguments,
        _demo,
    ),
    "distill": (
        "Distils real images and a self-supervised model into a synthetic set.",
        _distill_arguments,
        _distill,
    ),
    "pretrain": ("Pre-trains a timm backbone on a synthetic set.", _pretrain_arguments, _pretrain),
    "evaluate": (
        "Tries students that were pre-trained on a set and on what it has to beat on labelled tasks, writes a report.",
        _evaluate_arguments,
        _evaluate,
    ),
    "students": ("Lists the students that take images of a size.", _students_arguments, _students),
    "inspect": ("Tells what a synthetic set is: sizes, provenance, pictures.", _inspect_arguments, _inspect),
}
