"""Asks one architecture of every timm family for its map, as student and as target, and prints the table.

    python tests/benchmarks/maps_coverage.py [NAME ...] [--out FILE]

Without names, the smallest member of each family that gives features `(B, p)`, at its own size and on the CPU. Each is
asked three things: whether its features are the same to the last bit with and without a map, whether a gradient of the
map reaches the image, and whether the map shows where that was changed: in its upper right corner. With fresh weights
ConvMixer, CPUBone, LeViT and TinyViT spread a change over all positions; theirs are equal to what timm's own
`forward_intermediates` returns.
"""

import argparse
import gc
from pathlib import Path

import timm
import torch
from timm.models import model_entrypoint
from timm_coverage import SMALL, families, own_size, smallest
from torch import Tensor, nn
from tqdm import tqdm

from lightly_distill.errors import DistillError
from lightly_distill.models import maps
from lightly_distill.models.targets import as_target
from lightly_distill_integrations.timm import backbones

NO_MAP = (maps.NoMapError, DistillError)


def main() -> None:
    """Tries all and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    names = options.names or smallest_of_each_family()
    lines, count = [], 0
    for name in (progress := tqdm(sorted(names), unit="model")):
        progress.set_postfix(name=name)
        family = model_entrypoint(name).__module__.rpartition(".")[2]
        try:
            lines.append(f"| {family} | {name} | {row(name)} |")
            count += 1
        except NO_MAP as error:
            lines.append(f"| {family} | {name} | none: {error} | | | | |")
        gc.collect()

    text = "\n".join(
        [
            "| family | architecture | map (C, h, w) | same features | average is the features | gradient | corner |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"{count} of {len(lines)} have a map (timm {timm.__version__}, torch {torch.__version__}).",
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def smallest_of_each_family() -> list[str]:
    """Returns a name for each family."""
    facts = backbones.list_students(SMALL, "*")
    return [smallest(names, facts)[0] for names in families().values()]


def row(name: str) -> str:
    """Returns what is told of one architecture."""
    size = own_size(name)
    torch.manual_seed(0)
    model = backbones.build(name, size).eval()
    images = changed(torch.rand(1, 3, size, size))
    with torch.no_grad():
        features, last = maps.with_map(model, images)
        same = torch.equal(features, model(images))
    target = as_target(model, mean=(0, 0, 0), std=(1, 1, 1))
    grid = min(*last.shape[-2:], 4)
    representations, averaged = target.maps(images, grid)
    same = same and torch.equal(representations, features) and torch.equal(averaged, maps.to_grid(last, grid))
    mean = last.mean((2, 3))
    is_mean = mean.shape == features.shape and torch.allclose(mean, features, rtol=1e-3, atol=1e-5)
    answers = (same, is_mean, reaches_the_image(model, images[:1], grid), shows_the_corner(last))
    return " | ".join([str(tuple(last.shape[1:])), *("yes" if answer else "no" for answer in answers)])


def changed(image: Tensor) -> Tensor:
    """Returns an image, and the same with another upper right corner."""
    size = image.shape[-1]
    other = image.clone()
    other[:, :, : size // 4, -size // 4 :] = 1 - other[:, :, : size // 4, -size // 4 :]
    return torch.cat([image, other])


def reaches_the_image(model: nn.Module, image: Tensor, grid: int) -> bool:
    """Returns whether the gradient of a map reaches the pixels."""
    image = image.clone().requires_grad_()
    _, averaged = maps.maps(model, image, grid)
    averaged.square().mean().backward()
    return image.grad is not None and bool(image.grad.abs().sum() > 0)


def shows_the_corner(last: Tensor) -> bool:
    """Returns whether the two maps differ most in their upper right quarter."""
    difference = (last[0] - last[1]).abs().sum(0)
    height, width = difference.shape
    at = int(difference.argmax())
    return at // width < (height + 1) // 2 and at % width >= width // 2


if __name__ == "__main__":
    main()
