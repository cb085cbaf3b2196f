import pytest
import torch
from torch import Tensor

from lightly_distill.errors import UsageError
from lightly_distill.method import projection
from lightly_distill.method.projection import fit_projection
from lightly_distill.models.projection import Projection
from lightly_distill.runtime.seeding import generator

N, D = 60, 7


def rows(count: int = N) -> Tensor:
    g = generator(0, "rows")
    spread = torch.tensor([9.0, 5.0, 3.0, 1.0, 0.5, 0.1, 0.05])
    turn = torch.linalg.qr(torch.randn(D, D, generator=g)).Q
    return torch.randn(count, D, generator=g) * spread @ turn + 100


def fitted(table: Tensor, dims: int, *, whiten: bool = False) -> Projection:
    return fit_projection(lambda indices: table[indices], torch.arange(len(table)), dims, whiten=whiten)


def test_the_directions_are_those_of_a_singular_value_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "CHUNK", 17)  # no divisor of 60
    table = rows()
    found = fitted(table, 3)
    centred = table.double() - table.double().mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    cosines = (found.basis.double() * directions[:3].T).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(found.variance) == pytest.approx(float((values[:3] ** 2).sum() / (values**2).sum()), rel=1e-5)
    torch.testing.assert_close(found.apply(table).mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    assert (found.basis.gather(0, found.basis.abs().argmax(0, keepdim=True)) > 0).all()  # the sign is settled


def test_whitened_directions_have_the_same_variance_and_no_covariance() -> None:
    table = rows()
    projected = fitted(table, 4, whiten=True).apply(table)
    torch.testing.assert_close(projected.T @ projected / N, torch.eye(4), rtol=0, atol=1e-3)
    assert fitted(table, 4, whiten=True).whitened and not fitted(table, 4).whitened


@pytest.mark.parametrize("whiten", [False, True])
def test_all_directions_give_the_original_space_back_and_fewer_its_nearest(whiten: bool) -> None:
    table = rows()
    for dims in (D, 2):
        found = fitted(table, dims, whiten=whiten)
        lost = (found.restore(found.apply(table)) - table).square().sum()
        share = float(lost / (table - table.mean(0)).square().sum())
        assert share == pytest.approx(1 - float(found.variance), abs=1e-5)


def test_more_directions_than_there_can_be_are_refused() -> None:
    with pytest.raises(UsageError, match="target_dims=8 is more than the 7 numbers of the target's representations"):
        fitted(rows(), 8)
    with pytest.raises(UsageError, match=r"target_dims=5 needs more than 5 real images .* there are 5"):
        fitted(rows(5), 5)
    flat = rows() @ torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0, 0]))
    with pytest.raises(UsageError, match=r"cannot scale 4 directions: .* vary in 3 only. Give fewer"):
        fitted(flat, 4, whiten=True)
    assert fitted(flat, 4).variance == pytest.approx(1)  # without whitening, nothing is divided by it
    constant = torch.ones(N, D)
    with pytest.raises(UsageError, match="vary in 0 only"):
        fitted(constant, 1, whiten=True)


def test_a_covariance_that_memory_does_not_hold_is_refused_before_the_work() -> None:
    with pytest.raises(UsageError, match=r"covariance of all 10000000 numbers .* \d+ GiB: give target_dims=null"):
        projection.check_dims(4, dim=10_000_000)
