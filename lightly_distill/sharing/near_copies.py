"""Are synthetic images near copies of real ones? To be asked before a set is public.

Shapes: m synthetic images, n real images, k of them looked at for comparison, p numbers of an image.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightly_distill.method.krr import full_precision
from lightly_distill.runs.origin import RealSide
from lightly_distill.runtime import seeding
from lightly_distill.runtime.files import writing
from lightly_distill.runtime.progress import Progress
from lightly_distill.synthetic import pictures
from lightly_distill.synthetic.synthetic_set import SyntheticSet

# A near copy is nearer to a real image than this share of the usual distance (the median) between a real image and its
# nearest other one. Of CIFAR-10's own images, 2 in 100 are that near to another: duplicates, and flat ones.
NEAR = 0.5
COMPARED = 1000  # real images at most, whose nearest other one is looked for
CHUNK = 1024  # real images at a time
SHOWN = 24  # pairs in the picture


@dataclass(frozen=True)
class Nearest:
    """How near images are in one space.

    Attributes:
        synthetic: Distance of each synthetic image to its nearest real one, shape (m,).
        index: Of that real image, int64, shape (m,).
        real: Distance of some real images to their nearest other one, shape (k,).
    """

    synthetic: Tensor
    index: Tensor
    real: Tensor

    @property
    def limit(self) -> float:
        """Distance up to which an image is a near copy."""
        return NEAR * float(self.real.median())

    @property
    def near(self) -> Tensor:
        """Which synthetic images are near copies, bool, shape (m,)."""
        return self.synthetic <= self.limit  # twins among the real images may make the limit 0

    def facts(self) -> dict[str, float]:
        """Returns the numbers, JSON-able."""
        return {
            "synthetic_median": float(self.synthetic.median()),
            "synthetic_least": float(self.synthetic.min()),
            "real_median": float(self.real.median()),
            "real_least": float(self.real.min()),
            "near": int(self.near.sum()),
            "near_share_of_real": float((self.real <= self.limit).float().mean()),
        }


@dataclass(frozen=True)
class NearCopies:
    """What was found.

    Attributes:
        pixels: Root mean square difference of pixels in [0, 1], as a screen shows them: what goes beyond is clipped,
            which brings an image nearer to a real one, never farther away.
        representations: Distance of the target's representations.
        traced: How many synthetic images have as their nearest real image, in pixels, the one that they started from;
            None where none started from a real image.
    """

    pixels: Nearest
    representations: Nearest
    traced: int | None

    @property
    def near(self) -> Tensor:
        """Which synthetic images are near copies in either space, bool, shape (m,)."""
        return self.pixels.near | self.representations.near

    def facts(self) -> dict[str, Any]:
        """Returns the numbers, JSON-able, as a set keeps them in its metrics."""
        spaces = {"pixels": self.pixels.facts(), "representations": self.representations.facts()}
        return {"images": len(self.near), "near": int(self.near.sum()), "traced": self.traced, "share": NEAR, **spaces}


def find_near_copies(synthetic: SyntheticSet, real: RealSide) -> NearCopies:
    """Looks for the nearest real image of each synthetic one, and of as many real ones, at most 1,000.

    Args:
        synthetic: The set.
        real: The real images it was distilled from, at least 2, and its target.
    """
    shown = synthetic.displayable()
    own = real.truth.layout.split(real.represent(shown))[0]
    count = min(len(real.source), COMPARED)
    order = torch.randperm(len(real.source), generator=seeding.generator(0, "near copies"))[:count].sort().values
    pixels = _nearest(_flat(shown), _flat(real.source.read(order)), order, _pixels(real), real.device)
    representations = _nearest(own, real.representations[order], order, _representations(real), real.device)
    started = synthetic.source_index >= 0
    traced = int((pixels.index == synthetic.source_index)[started].sum()) if started.any() else None
    return NearCopies(pixels, representations, traced)


def draw_pairs(found: NearCopies, synthetic: SyntheticSet, real: RealSide, path: Path) -> None:
    """Draws the synthetic images that are nearest to a real one beside it, nearest first. It shows real images!

    Args:
        found: From `find_near_copies`.
        synthetic: The same set.
        real: The same real images.
        path: PNG to write.

    Raises:
        DistillError: If it cannot be written.
    """
    # in units of each space's limit, the nearer of the two
    spaces = (found.pixels, found.representations)
    scaled = torch.stack([space.synthetic / max(space.limit, 1e-12) for space in spaces])
    least, which = scaled.min(0)
    order = least.argsort()[:SHOWN]
    partner = torch.stack([space.index for space in spaces])[which[order], order]
    shown = synthetic.displayable()[order]
    gap = shown.new_full((*shown.shape[:3], max(1, shown.shape[3] // 16)), 255)
    pairs = torch.cat([shown, gap, real.source.read(partner)], dim=3)  # side by side
    labels = [
        f"synthetic {own}, real {other}: {float(least[own]):.2f}"
        for own, other in zip(order.tolist(), partner.tolist(), strict=True)
    ]
    title = "Each synthetic image and its nearest real one; below 1.00 of the limit it is a near copy"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.labelled(pairs, labels, title, path)


def _nearest(
    synthetic_MP: Tensor, real_KP: Tensor, order: Tensor, batches: Iterator[Tensor], device: torch.device
) -> Nearest:
    """Finds nearest ones among real images that come in batches (b, p), in order, in full precision."""
    with full_precision(device):
        return _found(synthetic_MP, real_KP, order, batches, device)


def _found(
    synthetic_MP: Tensor, real_KP: Tensor, order: Tensor, batches: Iterator[Tensor], device: torch.device
) -> Nearest:
    queries = torch.cat([synthetic_MP, real_KP]).to(device)
    centre, count = queries.mean(0), len(synthetic_MP)
    queries = queries - centre
    least = torch.full((len(queries),), torch.inf, device=device)
    index = torch.full((len(queries),), -1, device=device)
    start = 0
    for batch in batches:
        batch = batch.to(device) - centre
        distances = torch.cdist(queries, batch, compute_mode="use_mm_for_euclid_dist")
        inside = (order >= start) & (order < start + len(batch))
        own = count + inside.nonzero().flatten()  # a real image is not its own nearest one
        distances[own.to(device), (order[inside] - start).to(device)] = torch.inf
        masked, place = distances.min(1)
        # the product is quick, twenty times, but says that an image is not quite equal to itself
        exact = torch.where(masked.isinf(), masked, (queries - batch[place]).norm(dim=1))
        better = exact < least
        least, index = torch.where(better, exact, least), torch.where(better, place + start, index)
        start += len(batch)
    least, index = least.cpu(), index.cpu()
    return Nearest(least[:count], index[:count], least[count:])


def _pixels(real: RealSide) -> Iterator[Tensor]:
    chunks = torch.split(torch.arange(len(real.source)), CHUNK)
    with Progress("Looking for near copies", len(real.source), "image") as bar:
        for images in real.source.stream(chunks):
            yield _flat(images)
            bar.add(len(images))


def _representations(real: RealSide) -> Iterator[Tensor]:
    return iter(torch.split(real.representations, CHUNK))


def _flat(images: Tensor) -> Tensor:
    """Scales uint8 images so that the distance of two is their root mean square difference in [0, 1]."""
    numbers = images[0].numel()
    return images.flatten(1).float() / (255 * math.sqrt(numbers))
