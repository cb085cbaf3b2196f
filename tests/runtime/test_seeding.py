import pytest
import torch
from torch import nn

from lightly_distill.runtime.seeding import derive, generator, global_seed


def test_a_draw_depends_on_seed_name_and_count_and_on_nothing_else() -> None:
    torch.manual_seed(1)
    first = torch.rand(4, generator=generator(0, "batches", 3))
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(4, generator=generator(0, "batches", 3)))
    for other in ((1, "batches", 3), (0, "views", 3), (0, "batches", 4)):
        assert not torch.equal(first, torch.rand(4, generator=generator(*other)))


def test_seeds_are_the_same_on_every_platform_and_in_every_version() -> None:
    assert derive(0, "batches", 3) == 7057784065625446175


def test_the_global_generator_is_seeded_inside_and_restored_outside() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with global_seed(0, "student", 1):
        first = nn.Linear(3, 3).weight
    assert torch.equal(torch.get_rng_state(), before)
    with global_seed(0, "student", 1):
        assert torch.equal(nn.Linear(3, 3).weight, first)


@pytest.mark.gpu
def test_the_generators_of_cuda_are_restored_too() -> None:
    torch.cuda.manual_seed_all(5)
    before = torch.cuda.get_rng_state_all()
    for device in (None, torch.device("cuda")):
        with global_seed(0, "student", device=device):
            torch.rand(3, device="cuda")
            torch.cuda.set_rng_state_all(before) if device is None else None
        assert all(torch.equal(a, b) for a, b in zip(torch.cuda.get_rng_state_all(), before, strict=True))
