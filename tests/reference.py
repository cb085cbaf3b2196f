"""KRR-ST as plainly as it can be written: the oracle of the tests and the other side of the benchmark.

Lee et al., ICLR 2024, arXiv:2310.06511, Algorithm 1. Float64 by default, full batch, nothing kept, no tricks. The
caller draws the random numbers, so that both sides can be given the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RIDGE = 1e-6


def ridge_prediction(real: Tensor, syn: Tensor, syn_representations: Tensor, ridge: float = RIDGE) -> Tensor:
    """Dual kernel ridge regression with a bias, by a general solve."""
    real = torch.cat([real, real.new_ones(len(real), 1)], dim=1)
    syn = torch.cat([syn, syn.new_ones(len(syn), 1)], dim=1)
    kernel = syn @ syn.T
    penalty = ridge * kernel.detach().trace()
    system = kernel + penalty * torch.eye(len(syn)).to(kernel)
    return real @ syn.T @ torch.linalg.solve(system, syn_representations)


def outer_loss(student: nn.Module, images: Tensor, representations: Tensor, real: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of the ridge prediction, student in eval mode."""
    student.eval()
    with torch.no_grad():
        real_features = student(real)
    return (ridge_prediction(real_features, student(images), representations) - truth).square().mean()


@dataclass
class Student:
    """An online student, its head, its optimizer, and the training steps that it has taken."""

    model: nn.Module
    head: nn.Module
    optimizer: torch.optim.Optimizer
    age: int = 0


def new_student(build: Callable[[], tuple[nn.Module, nn.Module]], dtype: torch.dtype = torch.float64) -> Student:
    """A freshly initialised student with the paper's optimizer."""
    model, head = (part.to(dtype) for part in build())
    parameters = [*model.parameters(), *head.parameters()]
    return Student(model, head, torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3))


def train_student(student: Student, images: Tensor, representations: Tensor) -> None:
    """One SGD step on the synthetic set, full batch, train mode."""
    student.model.train()
    loss = (student.head(student.model(images.detach())) - representations.detach()).square().mean()
    student.optimizer.zero_grad()
    loss.backward()
    student.optimizer.step()
    student.age += 1


def outer_step(
    pool: list[Student],
    drawn: int,
    images: Tensor,
    representations: Tensor,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    target: nn.Module,
    max_age: int,
    build: Callable[[], tuple[nn.Module, nn.Module]],
) -> float:
    """One outer step of Algorithm 1: the target sees the batch, X_s and Y_s move, the drawn student moves or dies."""
    student = pool[drawn]
    with torch.no_grad():
        truth = target(real)
    loss = outer_loss(student.model, images, representations, real, truth)
    images.grad, representations.grad = torch.autograd.grad(loss, [images, representations])
    optimizer.step()
    train_student(student, images, representations)
    if student.age == max_age:
        pool[drawn] = new_student(build, images.dtype)
    return loss.item()
