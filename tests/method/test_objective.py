import pytest
import torch
from torch import Tensor

import reference
from lightly_distill.method.objective import Objective
from lightly_distill.models.rows import Layout
from lightly_distill.runtime.seeding import generator

FEATURES, TARGETS = Layout(20, channels=6, grid=2), Layout(5, channels=3, grid=2)
OBJECTIVE = Objective(1e-3, 1e-2, torch.float64, FEATURES, TARGETS)


def problem(m: int = 7, b: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = generator(0, "objective")
    sizes = ((b, FEATURES), (m, FEATURES), (m, TARGETS), (b, TARGETS))
    real, syn, learned, truth = (torch.randn(n, layout.width, generator=g, dtype=torch.float64) for n, layout in sizes)
    return real, syn.requires_grad_(), learned.requires_grad_(), truth


def cells(layout: Layout, rows: Tensor) -> Tensor:
    """The plain way: a row for each image and place."""
    _, maps = layout.split(rows)
    assert maps is not None
    places = [maps[i, :, y, x] for i in range(len(rows)) for y in range(layout.grid) for x in range(layout.grid)]
    return torch.stack(places)


def plain(real: Tensor, syn: Tensor, learned: Tensor, truth: Tensor) -> Tensor:
    vectors = [
        layout.split(rows)[0]
        for layout, rows in zip((FEATURES, FEATURES, TARGETS, TARGETS), (real, syn, learned, truth), strict=True)
    ]
    loss = (reference.ridge_prediction(*vectors[:3], 1e-3) - vectors[3]).square().mean()
    a, b, y, t = (cells(FEATURES, real), cells(FEATURES, syn), cells(TARGETS, learned), cells(TARGETS, truth))
    return loss + (reference.ridge_prediction(a, b, y, 1e-2) - t).square().mean()


@pytest.mark.parametrize("m", [2, 7, 30])
def test_loss_and_gradients_are_those_of_two_plain_ridge_regressions(m: int) -> None:
    real, syn, learned, truth = problem(m)
    ours, jitters, _ = OBJECTIVE.loss(real, syn, learned, truth)
    expected = plain(real, syn, learned, truth)
    torch.testing.assert_close(ours, expected)
    assert jitters == 0
    for a, b in zip(
        torch.autograd.grad(ours, [syn, learned]), torch.autograd.grad(expected, [syn, learned]), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_parts_of_a_batch_add_up_to_the_whole() -> None:
    real, syn, learned, truth = problem()
    whole, *_ = OBJECTIVE.loss(real, syn, learned, truth)
    parts = [OBJECTIVE.loss(real[part], syn, learned, truth[part], 9)[0] for part in (slice(0, 4), slice(4, 9))]
    torch.testing.assert_close(sum(parts), whole)
    nothing, *_ = OBJECTIVE.loss(real[:0], syn, learned, truth[:0], 9)
    assert nothing == 0


@pytest.mark.parametrize("which", ["features", "targets"])
def test_where_one_side_has_no_map_the_vectors_alone_count(which: str) -> None:
    real, syn, learned, truth = problem()
    if which == "features":
        objective = Objective(1e-3, 1e-2, torch.float64, Layout(FEATURES.width), TARGETS)
        expected = reference.ridge_prediction(real, syn, learned[:, :5], 1e-3) - truth[:, :5]
    else:
        objective = Objective(1e-3, 1e-2, torch.float64, FEATURES, Layout(TARGETS.width))
        expected = reference.ridge_prediction(real[:, :20], syn[:, :20], learned, 1e-3) - truth
    torch.testing.assert_close(objective.loss(real, syn, learned, truth)[0], expected.square().mean())
