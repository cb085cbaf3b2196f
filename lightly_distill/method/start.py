"""Where a synthetic set starts: random real images, varied ones, or noise that has their spread."""

import torch
from torch import Tensor

from lightly_distill.method.config import DistillConfig
from lightly_distill.method.kmeans import nearest_to_centroids
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.step import RealBatch
from lightly_distill.runtime import seeding

CHUNK = 512  # real images at a time
SAMPLE = 4096  # real images of which a start from noise has mean and covariance


def initial(real: RealImages, config: DistillConfig) -> tuple[Tensor, RealBatch]:
    """Chooses `config.num_images` images and their representations, as `config.init` says.

    Returns:
        Indices in the source, shape (M,), -1 where it is no real image, and the batch.
    """
    if config.init == "noise":
        return torch.full((config.num_images,), -1), _noise(real, config.num_images, config.seed)
    train = real.split.train
    if config.init == "kmeans":
        rows = real.truth.of_images(train)
        vectors, _ = real.truth.layout.split(rows)
        chosen = nearest_to_centroids(vectors, config.num_images, config.seed)
    else:
        order = torch.randperm(len(train), generator=seeding.generator(config.seed, "initial"))
        chosen = order[: config.num_images]
    indices = train[chosen]
    return indices, real.plain(indices)


def _noise(real: RealImages, count: int, seed: int) -> RealBatch:
    """Draws noise with the spread of real images and of their representations.

    From white noise little is learned, as the target's representations of it are all alike. So images and
    representations are drawn together, from the normal distribution that has mean and covariance of those of up to
    `SAMPLE` real images: coloured as these are, and like no one of them.
    """
    generator = seeding.generator(seed, "initial", "noise")
    train = real.split.train
    sample = train[torch.randperm(len(train), generator=generator)[:SAMPLE]]
    # normal numbers, summed up over the centred rows, have the covariance of the rows
    weights = torch.randn(count, len(sample), generator=generator) / max(len(sample) - 1, 1) ** 0.5
    mean, noise = torch.zeros(()), torch.zeros(())
    for indices, weight in zip(torch.split(sample, CHUNK), torch.split(weights, CHUNK, dim=1), strict=True):
        batch = real.plain(indices)
        rows = torch.cat([batch.images.flatten(1), batch.representations], dim=1).cpu()
        mean, noise = mean + rows.sum(0) / len(sample), noise + weight @ rows
    noise = noise + (1 - weights.sum(1, keepdim=True)) * mean
    shape, device = batch.images.shape[1:], batch.images.device
    images, representations = noise.split([shape.numel(), noise.shape[1] - shape.numel()], dim=1)
    return RealBatch(images.reshape(count, *shape).to(device), representations.contiguous().to(device))
