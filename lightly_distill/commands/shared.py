"""What several commands share."""

from jsonargparse import ArgumentParser

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
    "The self-supervised model: a checkpoint (.ckpt, .pt, .pth, .safetensors), timm:NAME or torchvision:NAME, "
    "timm:NAME@FILE or torchvision:NAME@FILE with weights in a checkpoint, or pkg.module:callable, a function that "
    "returns a model. No code in a file is run."
)


def target_options(parser: ArgumentParser) -> None:
    """Declares how the target is found in its model."""
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
