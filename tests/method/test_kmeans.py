import torch

from lightly_distill.method.kmeans import nearest_to_centroids


def test_takes_one_point_of_each_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 5, generator=generator) * 20
    points = centres.repeat_interleave(30, 0) + torch.randn(240, 5, generator=generator) * 0.1
    chosen = nearest_to_centroids(points, 8, seed=0)
    assert sorted((chosen // 30).tolist()) == list(range(8))


def test_takes_no_point_twice_though_all_are_equal() -> None:
    chosen = nearest_to_centroids(torch.ones(7, 3), 7, seed=0)
    assert sorted(chosen.tolist()) == list(range(7))
