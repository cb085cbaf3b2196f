"""`lightly-distill pretrain`."""

import textwrap
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightly_distill.cli.options import SET_HELP, config_option, config_written, recipe_option
from lightly_distill.models.students import find_adapter
from lightly_distill.sharing.publish_student import publish_student
from lightly_distill.synthetic import address
from lightly_distill.synthetic.pretrain import PretrainConfig, check_student, is_trained, pretrain
from lightly_distill.synthetic.synthetic_set import SyntheticSet

ABOUT = "Pre-trains a timm backbone on a synthetic set."


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    config_option(parser)
    parser.add_argument("--set", type=str, required=True, metavar="DIR_OR_HUB", help=SET_HELP)
    parser.add_argument("--student", type=str, required=True, metavar="NAME", help="timm name of the backbone.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for the backbone.")
    parser.add_argument(
        "--push",
        type=str | None,
        default=None,
        metavar="REPO_ID",
        help="OWNER/NAME of a model on the Hugging Face Hub, which gets the backbone. After a failed upload, the same "
        "command completes it and trains nothing again.",
    )
    parser.add_argument("--private", action="store_true", help="Of a new model on the Hub: only you may see it.")
    recipe_option(parser)
    parser.add_class_arguments(PretrainConfig, nested_key=None)
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="Root of all random draws: initial weights, order of the images, dropout.",
    )
    parser.add_argument("--device", type=str, default="auto", help="`auto`, `cpu`, `cuda`, `cuda:N`, `mps` or `xpu`.")


def run(options: Namespace) -> None:
    """Runs the command."""
    config = PretrainConfig(**{field.name: options[field.name] for field in fields(PretrainConfig)})
    check_student(options.student, options.set)  # before the set, which may be a download
    if options.push is not None:
        hub, repo_id = address.find_hub(options.push)
        hub.check_token()
        hub.look_at(repo_id, "model", None)
    synthetic = SyntheticSet.load(options.set)
    adapter, name = find_adapter(options.student)
    trained = options.push is not None and is_trained(
        options.student, synthetic, options.out, config=config, seed=options.seed
    )
    if not trained:
        with config_written(options, options.out):
            backbone = pretrain(
                options.student, synthetic, config=config, seed=options.seed, device=options.device, out=options.out
            )
        print(f"Wrote {options.out}. To use it:")
        print(textwrap.indent(adapter.how_to_load(backbone, name, str(options.out)), "    "))
    if options.push is not None:
        url = publish_student(options.out, options.push, private=options.private or None)
        print(f"Sent {options.out} to {url}. To use it:")
        print(textwrap.indent(adapter.how_to_load_from_hub(name, repo_id), "    "))
