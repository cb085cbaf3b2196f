import pytest
import torch
from torch import Tensor

import reference
from lightly_distill.errors import DistillError
from lightly_distill.method import krr
from lightly_distill.method.krr import kernel_ridge
from lightly_distill.runtime.seeding import generator


def problem(
    m: int, p: int, b: int = 6, d: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(0, "krr", m, p)
    real, syn, reps = (torch.randn(*s, generator=g, dtype=dtype) for s in ((b, p), (m, p), (m, d)))
    return real, syn.requires_grad_(), reps.requires_grad_()


def loss_and_gradients(values: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    loss = (values - 0.3).square().mean()
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


# m below, at and above the number of features with the bias
@pytest.mark.parametrize("m", [3, 8, 9, 10, 40])
def test_prediction_loss_and_gradients_equal_the_plain_reference(m: int) -> None:
    real, syn, reps = problem(m, p=8)
    ours = kernel_ridge(real, syn, reps, ridge=1e-3, dtype=torch.float64)
    plain = reference.ridge_prediction(real, syn, reps, ridge=1e-3)
    torch.testing.assert_close(ours.values, plain, rtol=1e-9, atol=1e-10)
    for a, b in zip(loss_and_gradients(ours.values, syn, reps), loss_and_gradients(plain, syn, reps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("m", [5, 12])
def test_gradients_equal_finite_differences_of_a_frozen_penalty(m: int) -> None:
    real, syn, reps = problem(m, p=6)
    # the penalty carries no gradient, so finite differences must hold it fixed: scale the ridge to the moved trace
    trace = float(syn.detach().square().sum() + m)

    def values(syn_: Tensor, reps_: Tensor) -> Tensor:
        fixed = 1e-2 * trace / float(syn_.detach().square().sum() + m)
        return kernel_ridge(real, syn_, reps_, ridge=fixed, dtype=torch.float64).values

    assert torch.autograd.gradcheck(values, (syn, reps), atol=1e-6)


@pytest.mark.parametrize(("m", "size"), [(5, 5), (9, 9), (10, 9), (40, 9)])
def test_the_smaller_of_the_two_systems_is_solved(m: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    factorise, sizes = torch.linalg.cholesky_ex, []
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: sizes.append(len(matrix)) or factorise(matrix))
    kernel_ridge(*problem(m, p=8))
    assert sizes == [size]


def test_the_penalty_carries_no_gradient() -> None:
    real, syn, reps = problem(4, p=8)
    values = kernel_ridge(real, syn, reps, ridge=0.5, dtype=torch.float64).values
    biased = torch.cat([syn, torch.ones(4, 1, dtype=torch.float64)], dim=1)
    kernel = biased @ biased.T
    system = kernel + 0.5 * kernel.trace() * torch.eye(4, dtype=torch.float64)  # here the trace does carry gradient
    with_trace = (
        torch.cat([real, torch.ones(6, 1, dtype=torch.float64)], dim=1) @ biased.T @ torch.linalg.solve(system, reps)
    )
    torch.testing.assert_close(values, with_trace)
    ours, other = (loss_and_gradients(v, syn)[1] for v in (values, with_trace))
    assert (ours - other).norm() > 0.01 * other.norm()


def test_no_gradient_flows_to_the_real_features() -> None:
    real, syn, reps = problem(4, p=8)
    real.requires_grad_()
    kernel_ridge(real, syn, reps).values.sum().backward()
    assert real.grad is None and syn.grad is not None


def test_an_infinite_ridge_predicts_zero() -> None:
    real, syn, reps = problem(4, p=8)
    assert kernel_ridge(real, syn, reps, ridge=1e12, dtype=torch.float64).values.abs().max() < 1e-9


def test_the_bias_fits_a_constant_exactly() -> None:
    real, syn, _ = problem(20, p=5)
    constant = torch.full((20, 3), 2.5, dtype=torch.float64)
    values = kernel_ridge(real, syn, constant, ridge=1e-9, dtype=torch.float64).values
    torch.testing.assert_close(values, torch.full((6, 3), 2.5, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("m", [1, 7, 30])
def test_degenerate_sets_give_finite_predictions_and_gradients(m: int) -> None:
    real, _, _ = problem(m, p=8, dtype=torch.float32)
    duplicates = torch.ones(m, 8) * torch.randn(1, 8, generator=generator(0, "duplicates"))
    for syn in (duplicates, torch.zeros(m, 8)):
        syn = syn.clone().requires_grad_()
        reps = torch.full((m, 3), 0.7).requires_grad_()
        values, *_ = kernel_ridge(real, syn, reps)
        loss, *gradients = loss_and_gradients(values, syn, reps)
        assert all(torch.isfinite(t).all() for t in (values, loss, *gradients))
        if not syn.any():  # zero features leave the bias alone, which predicts the mean
            torch.testing.assert_close(values, torch.full_like(values, 0.7), rtol=1e-3, atol=0)


def test_one_synthetic_image_predicts_its_representation_for_itself() -> None:
    _, syn, reps = problem(1, p=8)
    torch.testing.assert_close(kernel_ridge(syn, syn, reps, ridge=1e-9, dtype=torch.float64).values, reps)


def ill_conditioned(m: int = 256, p: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
    """Features that all point nearly the same way, as those of a network do."""
    g = generator(0, "ill")
    scale = torch.logspace(0, -3, p, dtype=torch.float64)
    syn, real = (torch.randn(n, p, generator=g, dtype=torch.float64) * scale + 1 for n in (m, 64))
    reps = (syn - 1) @ torch.randn(p, 8, generator=g, dtype=torch.float64)
    return real, syn, reps


@pytest.mark.parametrize("m", [256, 1500])
def test_under_bf16_autocast_the_solve_stays_float32(m: int) -> None:
    real, syn, reps = ill_conditioned(m)
    truth = kernel_ridge(real, syn, reps, dtype=torch.float64).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = kernel_ridge(real.float(), syn.float(), reps.float()).values
    assert values.dtype == torch.float32
    assert (values - truth).norm() < 1e-2 * truth.norm()


def test_tf32_is_off_in_the_ridge_and_as_it_was_after_it() -> None:
    torch.set_float32_matmul_precision("high")  # as Lightning tells its users
    try:
        with krr.full_precision(torch.device("cpu")):
            matmul = torch.backends.cuda.matmul
            inside = matmul.fp32_precision if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
        assert inside in ("ieee", False) and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
def test_on_a_gpu_with_tf32_allowed_the_ridge_is_that_of_float64() -> None:
    real, syn, reps = (tensor.cuda() for tensor in ill_conditioned())
    truth = kernel_ridge(real, syn, reps, dtype=torch.float64).values
    torch.set_float32_matmul_precision("high")
    try:
        values = kernel_ridge(real.float(), syn.float(), reps.float()).values
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (values - truth).norm() < 1e-2 * truth.norm()


def test_jitter_rescues_a_system_that_cholesky_refuses_and_is_counted() -> None:
    # in float32, 30 copies of a feature vector of norm 1e4 swamp a penalty of 1e-9 of the trace
    syn = (torch.ones(30, 64) * 1e3 + torch.randn(30, 64, generator=generator(0, "jitter")) * 1e-2).requires_grad_()
    reps = torch.randn(30, 3, generator=generator(0, "reps")).requires_grad_()
    prediction = kernel_ridge(syn.detach(), syn, reps, ridge=1e-8)
    assert prediction.jitters > 0
    assert prediction.residual <= krr.RESIDUAL_LIMIT
    assert all(torch.isfinite(t).all() for t in loss_and_gradients(prediction.values, syn, reps))
    assert kernel_ridge(syn.detach(), syn, reps, ridge=1e-8, dtype=torch.float64).jitters == 0


def test_a_residual_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real, syn, reps = problem(5, p=8, dtype=torch.float32)
    monkeypatch.setattr(krr, "RESIDUAL_LIMIT", 1e-12)
    with pytest.raises(DistillError, match=r"size 5 cannot be solved.*residual.*raise ridge.strength, or set"):
        kernel_ridge(real, syn, reps)


def test_features_and_representations_of_different_counts_are_refused() -> None:
    real, syn, reps = problem(5, p=8)
    with pytest.raises(ValueError, match="features of 5 synthetic images and representations of 4"):
        kernel_ridge(real, syn, reps[:4])
    with pytest.raises(ValueError, match=r"got \(6, 7\) and \(5, 8\)"):
        kernel_ridge(real[:, :7], syn, reps)
