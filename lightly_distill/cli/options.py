"""What several commands share."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from lightly_distill.errors import UsageError
from lightly_distill.models.targets import load_target
from lightly_distill.runtime.files import replacing
from lightly_distill.synthetic.pretrain import RECIPES

PROGRAM = "lightly-distill"
SET_HELP = (
    "Synthetic set: its folder, that of the run that made it, or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face "
    "Hub."
)
SOURCE_HELP = (
    "Real images: a folder (with or without class folders), a folder or file of parquet, Arrow or "
    "WebDataset's .tar shards, a saved Hugging Face dataset, a Hub dataset id, or "
    "torchvision:NAME; a split is chosen with #split. Names are looked up in $LIGHTLY_DISTILL_DATA too."
)
TARGET_HELP = (
    "The self-supervised model: a checkpoint (.ckpt, .pt, .pth, .pth.tar, .bin, .safetensors), timm:NAME or "
    "torchvision:NAME with the weights that are published, which are fetched (of timm from the Hugging Face Hub), "
    "timm:NAME@FILE or torchvision:NAME@FILE with weights in a checkpoint, timm:hf_hub:OWNER/NAME or "
    "timm:local-dir:DIR for a model that was saved with its configuration, or pkg.module:callable, a function that "
    "returns a model: its module is imported, which runs all of it that is not under `if __name__ == '__main__':`. No "
    "code in a file of weights is run. timm:NAME:random has random weights, for trying out."
)


REPRESENTATIONS_HELP = (
    "Where the target's representations of the real images are kept, so that runs on the same images with the same "
    "target compute them once: a folder, new or not, or that of another run. Or what there is of them already, one row "
    "for each item of the source in its order: a file of one tensor (.pt, .pth, .npy, .safetensors), or a Hugging Face "
    "dataset with a column 'embedding'."
)


def config_option(parser: ArgumentParser) -> None:
    """Declares `--config`."""
    parser.add_argument("--config", action="config", help="YAML file of options, as a run writes it.")


@contextmanager
def config_written(options: Namespace, folder: Path) -> Iterator[None]:
    """Writes the options as `config.yaml` after the block, also beside what an interrupted or failed one has left."""
    try:
        yield
    except UsageError:  # nothing has begun, and the folder may be another run's
        raise
    except BaseException:
        if folder.is_dir() and any(folder.iterdir()):  # an empty one can be given again
            _write_config(options, folder)
        raise
    _write_config(options, folder)


def _write_config(options: Namespace, folder: Path) -> None:
    # what concerns one run: another that takes these settings asks for its own, such as what to replace on the Hub
    apart = ("config", "debug", "out", "resume", "overwrite", "push", "private")
    given = {name: value for name, value in options.as_dict().items() if name not in apart}
    plain = json.loads(json.dumps(given, default=str))  # without the types of the parser
    with replacing(folder / "config.yaml") as partial:
        partial.write_text(yaml.safe_dump(plain, sort_keys=False))


class Several(argparse.Action):
    """An option that may be repeated; given on the command line, its values replace those of `--config`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Adds to what the command line has given so far."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, _Given([*(before if isinstance(before, _Given) else []), values]))


class _Given(list[str]):
    """Values of the command line, not of a file or default."""


def several(given: Any) -> list[str]:
    """Returns the values of an option without a type, for which a file may have one, a number too, or a list."""
    return [str(each) for each in given] if isinstance(given, list) else [str(given)]


def recipe_option(parser: ArgumentParser) -> None:
    """Declares which recipe of pre-training the other options change."""
    parser.add_argument(
        "--recipe",
        type=Literal[tuple(RECIPES)],
        default="default",
        help="How students are pre-trained. default: what was best for small sets. paper: as the authors of KRR-ST, "
        "without augmentation.",
    )


def representations_option(parser: ArgumentParser, default: str) -> None:
    """Declares `--representations`; `default` says what happens without it."""
    parser.add_argument(
        "--representations",
        type=str | None,
        default=None,
        metavar="DIR_OR_FILE",
        help=f"{REPRESENTATIONS_HELP} Default: {default}.",
    )


def target_options(parser: ArgumentParser) -> None:
    """Declares how the target is found in its model."""
    parser.add_argument(
        "--target-class",
        type=str | None,
        default=None,
        metavar="CLASS",
        help="pkg.module:Class of the model in a checkpoint, or a function that returns it. Not needed for a ResNet, "
        "whose weights show its class.",
    )
    parser.add_argument(
        "--target-encoder",
        type=str | None,
        default=None,
        metavar="PATH",
        help="Attribute path of the encoder inside the model, such as student_backbone. Default: the one that its "
        "method is evaluated with, where the model is made as Lightly's examples are.",
    )
    parser.add_argument(
        "--target-weights",
        type=str | None,
        default=None,
        metavar="KEY",
        help="Which weights of a checkpoint that holds several, such as state_dict or teacher. Default: averaged ones "
        "or the teacher's, which is told.",
    )


def given_target(options: Namespace) -> Any:
    """Loads the target that the options of `target_options` give, None where they give none."""
    if not options.target:
        return None
    return load_target(options.target, options.target_encoder, options.target_class, options.target_weights)
