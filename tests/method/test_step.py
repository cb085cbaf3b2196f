import pytest
import torch
from torch import Tensor, nn

import reference
import tiny
from lightly_distill.errors import DistillError
from lightly_distill.method.objective import Objective
from lightly_distill.method.step import RealBatch, chunks_of, kernel_pass, outer_gradient
from lightly_distill.runtime.seeding import generator, global_seed


def problem(m: int = 7, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor, RealBatch]:
    g = generator(0, "step")
    images, real = (torch.randn(n, 3, 8, 8, generator=g, dtype=dtype) for n in (m, 9))
    reps, truth = (torch.randn(n, 5, generator=g, dtype=dtype) for n in (m, 9))
    with global_seed(0, "student"):
        student = tiny.student().to(dtype)
    student.train()(torch.randn(20, 3, 8, 8, generator=g, dtype=dtype) * 2 + 1)  # batch norm with statistics
    return student, images.requires_grad_(), reps.requires_grad_(), RealBatch(real, truth)


@pytest.mark.parametrize("m", [1, 7, 33, 50])
def test_loss_and_gradients_equal_the_plain_reference(m: int) -> None:
    student, images, reps, real = problem(m)
    ours = outer_gradient(student, images, reps, real, objective=Objective(dtype=torch.float64))
    plain = reference.outer_loss(student, images, reps, real.images, real.representations)
    expected = torch.autograd.grad(plain, [images, reps])
    torch.testing.assert_close(ours.loss, plain.detach(), rtol=1e-6, atol=0)
    for a, b in zip((ours.images, ours.representations), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7 * float(b.abs().max()))


@pytest.mark.parametrize("m", [7, 50])
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 49, 64])
def test_in_chunks_of_any_size_it_is_the_same(m: int, chunk_size: int) -> None:
    student, images, reps, real = problem(m)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    whole = outer_gradient(student, images, reps, real, objective=Objective(dtype=torch.float64))
    ours = outer_gradient(student, images, reps, real, objective=Objective(dtype=torch.float64), chunk_size=chunk_size)
    torch.testing.assert_close(ours.loss, whole.loss, rtol=1e-9, atol=0)
    for a, b in ((ours.images, whole.images), (ours.representations, whole.representations)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9 * float(b.abs().max()))
    for name, value in student.state_dict().items():  # batch norm's too
        assert torch.equal(value, before[name]), name


def test_no_more_images_at_a_time_than_a_chunk_are_in_memory_with_their_graph() -> None:
    student, images, reps, real = problem(20)
    sizes: list[tuple[int, bool]] = []
    student[0].register_forward_hook(lambda module, inputs, output: sizes.append((len(output), output.requires_grad)))
    outer_gradient(student, images, reps, real, objective=Objective(dtype=torch.float64), chunk_size=6)
    assert sizes == [(n, False) for n in (5, 4, 5, 5, 5, 5)] + [(n, True) for n in (5, 5, 5, 5)]


@pytest.mark.parametrize(
    ("rows", "chunk_size", "sizes"),
    [
        (7, 3, [3, 2, 2]),
        (7, 2, [3, 2, 2]),  # none of a single image
        (100, 33, [25, 25, 25, 25]),
        (6, 2, [2, 2, 2]),
        (3, 2, [3]),
        (1, 2, [1]),
        (0, 2, []),
        (5, None, [5]),
        (5, 9, [5]),
    ],
)
def test_chunks_are_as_even_as_can_be(rows: int, chunk_size: int | None, sizes: list[int]) -> None:
    chunks = chunks_of(torch.arange(rows), chunk_size)
    assert [len(chunk) for chunk in chunks] == sizes
    assert torch.equal(torch.cat([torch.arange(0), *chunks]), torch.arange(rows))


def test_a_small_move_down_the_gradient_lowers_the_loss_as_the_gradient_says() -> None:
    student, images, reps, real = problem(12)
    # a large ridge, so that the loss is smooth; the penalty's own change is not part of the gradient: keep it fixed
    gradient = outer_gradient(student, images, reps, real, objective=Objective(0.1, dtype=torch.float64))
    with torch.no_grad():
        moved = reps - 1e-4 * gradient.representations / gradient.representations.norm()
    after = outer_gradient(student, images, moved.requires_grad_(), real, objective=Objective(0.1, dtype=torch.float64))
    expected = -1e-4 * gradient.representations.norm()
    torch.testing.assert_close(after.loss - gradient.loss, expected, rtol=1e-2, atol=0)


def test_the_student_comes_back_as_it_was() -> None:
    student, images, reps, real = problem()
    student[0].bias.requires_grad_(False)  # a flag of its own
    student[1].eval()  # and a mode of its own
    before = {name: value.clone() for name, value in student.state_dict().items()}
    outer_gradient(student, images, reps, real, objective=Objective(dtype=torch.float64))
    assert [module.training for module in student] == [True, False, True, True, True, True]
    assert student.training
    assert not student[0].bias.requires_grad and student[0].weight.requires_grad
    assert all(parameter.grad is None for parameter in student.parameters())
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_student_comes_back_as_it_was_after_an_error() -> None:
    student, *_ = problem()
    with pytest.raises(KeyError), kernel_pass(student):
        assert not student.training and not student[0].weight.requires_grad
        raise KeyError
    assert student[1].training and student[0].weight.requires_grad


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("real", "NaN or infinity in the features of the real images; lower"),
        ("images", "NaN or infinity in the features of the synthetic images; lower"),
        ("truth", "NaN or infinity in the outer loss; lower"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(broken: str, message: str, value: float) -> None:
    student, images, reps, real = problem()
    tensors = {"real": real.images, "images": images, "truth": real.representations}
    with torch.no_grad():
        tensors[broken].view(-1)[3] = value
    with pytest.raises(DistillError, match=message):
        outer_gradient(student, images, reps, real, objective=Objective(dtype=torch.float64))


def test_under_bf16_autocast_kernel_solve_and_their_gradient_stay_float32() -> None:
    student, images, reps, real = problem(30, torch.float32)
    seen: list[torch.dtype] = []

    class Features(nn.Module):  # the same features with and without autocast, so that only the ridge can differ
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.mm(x.flatten(1)[:1], x.flatten(1)[:1].T).dtype)
            with torch.autocast("cpu", enabled=False):
                return student(x)

    exact = outer_gradient(Features(), images, reps, real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = outer_gradient(Features(), images, reps, real)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2  # autocast did reach the student
    assert torch.equal(ours.loss, exact.loss)
    assert torch.equal(ours.images, exact.images)
    assert torch.equal(ours.representations, exact.representations)
