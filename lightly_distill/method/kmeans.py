"""A varied choice of points: the one nearest to each of as many centroids."""

import torch
from torch import Tensor

from lightly_distill.runtime import seeding

_CHUNK = 256  # centroids to compare at a time


def nearest_to_centroids(points: Tensor, count: int, seed: int) -> Tensor:
    """Chooses the point nearest to each centroid of k-means, each point once.

    Args:
        points: float32, shape (n, d).
        count: Number of centroids, at most n.
        seed: Root seed.

    Returns:
        Indices of the points, int64, shape (count,).
    """
    # here: it takes two seconds to import, and every import of the package would pay for it
    from sklearn.cluster import MiniBatchKMeans

    state = seeding.derive(seed, "arm", "kmeans") % 2**32
    kmeans = MiniBatchKMeans(count, random_state=state, batch_size=4096, n_init=3).fit(points.numpy())
    centroids = torch.from_numpy(kmeans.cluster_centers_).to(points.dtype)
    taken: dict[int, None] = {}
    for chunk in torch.split(centroids, _CHUNK):
        # one more than are taken when its turn comes is enough to find one that is free
        near = torch.cdist(chunk, points).topk(min(len(points), count), largest=False).indices
        for order in near.tolist():
            taken[next(index for index in order if index not in taken)] = None
    return torch.tensor(list(taken))
