import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lightly_distill.models.rows import Layout, RowHead, row_loss, with_rows


def test_a_row_is_the_vector_and_then_the_map_channel_by_channel() -> None:
    layout = Layout(3, channels=2, grid=2)
    vectors, maps = torch.randn(4, 3), torch.randn(4, 2, 2, 2)
    rows = layout.join(vectors, maps)
    assert rows.shape == (4, layout.width) == (4, 11)
    assert torch.equal(rows[:, 3:7], maps[:, 0].flatten(1))
    for part, expected in zip(layout.split(rows), (vectors, maps), strict=True):
        assert part is not None and torch.equal(part, expected)
    assert Layout(5).split(vectors) == (vectors, None)


def test_numbers_by_channel_come_back_as_numbers_of_a_row() -> None:
    layout = Layout(2, channels=2, grid=3)
    short = torch.tensor([1.0, 2.0, 3.0, 4.0])
    row = layout.by_number(short)
    assert row.tolist() == [1, 2, *[3] * 9, *[4] * 9]
    assert torch.equal(layout.by_channel(row), short)


@pytest.mark.parametrize(("name", "size", "channels"), [("resnet10t", 64, 512), ("test_vit", 160, 64)])
def test_features_of_a_timm_student_come_with_its_last_map(name: str, size: int, channels: int) -> None:
    backbone = timm.create_model(name, num_classes=0)
    images = torch.randn(2, 3, size, size)
    student, layout = with_rows(backbone.train(), images, 2)
    assert backbone.training and (layout.channels, layout.grid) == (channels, 2)
    rows = student.eval()(images)
    vectors, maps = layout.split(rows)
    torch.testing.assert_close(vectors, backbone(images))
    last = backbone.forward_features(images)
    if last.ndim == 4:
        assert maps is not None
        torch.testing.assert_close(maps, F.adaptive_avg_pool2d(last, 2))


def test_a_student_without_a_map_learns_from_the_vectors_alone() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(48, 6)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.linear(images.flatten(1))  # type: ignore[no-any-return]

    backbone, images = Flat(), torch.randn(5, 3, 4, 4)
    student, features = with_rows(backbone, images, 2)
    assert student is backbone and features == Layout(6)
    targets = Layout(3, channels=2, grid=2)
    truth = torch.randn(5, targets.width)
    predicted = RowHead(features, targets)(student(images))
    assert predicted.shape == (5, 3)
    torch.testing.assert_close(row_loss(predicted, truth, targets), F.mse_loss(predicted, truth[:, :3]))


def test_the_loss_is_that_of_vectors_plus_that_of_maps() -> None:
    targets = Layout(3, channels=2, grid=2)
    predicted, truth = torch.randn(2, 5, targets.width)
    expected = F.mse_loss(predicted[:, :3], truth[:, :3]) + F.mse_loss(predicted[:, 3:], truth[:, 3:])
    torch.testing.assert_close(row_loss(predicted, truth, targets), expected)


def test_the_head_of_a_map_is_the_same_linear_layer_at_each_place() -> None:
    features, targets = Layout(4, channels=3, grid=2), Layout(2, channels=5, grid=2)
    head, rows = RowHead(features, targets), torch.randn(6, features.width)
    vectors, maps = targets.split(head(rows))
    given_vectors, given_maps = features.split(rows)
    assert head.map is not None and maps is not None and given_maps is not None
    torch.testing.assert_close(vectors, head.vector(given_vectors))
    at_a_place = given_maps[:, :, 1, 0] @ head.map.weight[:, :, 0, 0].T + head.map.bias
    torch.testing.assert_close(maps[:, :, 1, 0], at_a_place)
