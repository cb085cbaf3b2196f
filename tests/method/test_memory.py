from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import tiny
from lightly_distill.method import memory
from lightly_distill.method.memory import estimate
from lightly_distill.runtime.seeding import generator


def student() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Flatten())


def test_counts_what_autograd_keeps() -> None:
    # of each image: itself, the convolution's output and the sigmoid's (batch norm keeps its input)
    expected = 4 * (3 + 8 + 8) * 64
    for count in (10, 1000):
        found = estimate([student()], torch.randn(count, 3, 8, 8), 16, None)
        features = 4 * (3 * count + 16) * 512
        real = 16 * 4 * (4 * 8 * 64)  # four outputs of its largest layer
        assert found.bytes == pytest.approx(max(count * expected, real) + features, rel=0.01)
        assert found.chunk_size is None and found.seconds > 0


def test_auto_takes_all_images_where_they_fit_and_else_as_many_as_do() -> None:
    images = torch.randn(1000, 3, 8, 8)
    per_image = 4 * (3 + 8 + 8) * 64
    assert estimate([student()], images, 16, "auto", free=2 * 1010 * per_image).chunk_size is None
    chunk = estimate([student()], images, 16, "auto", free=2 * 100 * per_image).chunk_size
    assert chunk is not None and 95 <= chunk <= 100
    assert estimate([student()], images, 16, "auto", free=0).chunk_size == 2
    assert estimate([student()], images, 16, 7, free=0).chunk_size == 7


def test_a_real_batch_that_does_not_fit_is_given_in_chunks_and_counted() -> None:
    images = torch.randn(20, 3, 8, 8)
    layer = 4 * 8 * 64
    found = estimate([student()], images, 1024, "auto", free=2 * 100 * 4 * layer)
    assert found.chunk_size == 100
    whole = estimate([student()], images, 1024, "auto", free=2**40)
    assert whole.chunk_size is None and whole.bytes >= 1024 * 4 * layer


def test_the_largest_architecture_counts_and_chunks_bound_the_memory() -> None:
    images = torch.randn(500, 3, 8, 8)
    small, mixed = (
        estimate(students, images, 16, None) for students in ([tiny.student()], [tiny.student(), student()])
    )
    assert mixed.bytes > small.bytes
    chunked = estimate([student()], images, 16, 10)
    assert chunked.bytes < estimate([student()], images, 16, None).bytes / 1.5
    assert chunked.seconds > 0


def test_the_student_and_the_global_generator_stay_as_they_are() -> None:
    g, network = generator(0, "memory"), tiny.student(dropout=0.5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    estimate([network], torch.randn(20, 3, 8, 8, generator=g), 16, "auto")
    assert torch.equal(torch.get_rng_state(), state) and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_pass_that_other_work_slowed_does_not_lengthen_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    now, passes = [0.0], []

    def forward(images: Tensor) -> Tensor:
        passes.append(len(images))
        now[0] += 50.0 if len(passes) in (1, 4) else 0.1  # the first call of all, and one that has to wait
        return images.flatten(1)

    monkeypatch.setattr(memory, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    network = nn.Module()
    network.forward = forward  # type: ignore[method-assign]
    found = estimate([network], torch.randn(10, 3, 8, 8), 40, None)
    assert found.image_seconds == pytest.approx(0.01)
    assert found.training_seconds == pytest.approx(10 * 3 * 0.01) and found.seconds == pytest.approx(0.9)


def test_what_torch_compile_puts_around_a_student_is_left_out() -> None:
    network = student()
    network._compiled_call_impl = lambda *args: pytest.fail("compiled")  # type: ignore[method-assign]
    plain = estimate([student()], torch.randn(20, 3, 8, 8), 16, None)
    assert estimate([network], torch.randn(20, 3, 8, 8), 16, None).bytes == plain.bytes
