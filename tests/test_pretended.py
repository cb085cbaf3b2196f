"""The pretended device does what CUDA does where the tests lean on it."""

import copy

import pytest
import torch
from torch import Tensor, nn

import pretended
import tiny


def test_numbers_are_those_of_the_cpu_and_tensors_say_cuda() -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    student = tiny.student()
    expected = student(images).square().mean()
    expected.backward()
    with pretended.cuda():
        twin = copy.deepcopy(student).to("cuda")
        found = twin(images.to("cuda")).square().mean()
        found.backward()
        assert found.device == twin[0].weight.device == pretended.DEVICE and twin[0].weight.grad.is_cuda
        torch.testing.assert_close(found.cpu(), expected)
        torch.testing.assert_close(copy.deepcopy(twin)[0].weight.cpu(), student[0].weight)
        assert twin.to("cuda")[0].weight is twin[0].weight and twin.cpu()[0].weight.device.type == "cpu"


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_steps_all_tensors_at_once(optimizer: type[torch.optim.Optimizer]) -> None:
    found = []
    for device in ("cpu", "cuda"):
        with pretended.cuda() as seen:
            weights = [nn.Parameter(torch.arange(1.0, 4).to(device) * size) for size in range(1, 9)]
            stepped = optimizer(weights, lr=0.1)
            for _ in range(2):
                for weight in weights:
                    weight.grad = weight.detach() * 2
                seen.clear()
                stepped.step()
            launches = seen.launches.total()
            found.append(torch.stack(weights).detach().cpu())
    torch.testing.assert_close(*found)
    assert 0 < launches < 2 * len(weights)


def test_mixtures_of_devices_are_refused_and_single_numbers_taken() -> None:
    with pretended.cuda():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        for mixture in (
            lambda: there + here,
            lambda: here + there.sum(),
            lambda: torch.cat([there, here]),
            lambda: here[there.long()],
            lambda: here.sum().add_(there.sum()),
            lambda: torch.where(here > 0, there, there),
            lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match="cuda"):
                mixture()
        assert (there + here.sum()).tolist() == [4, 4, 4]
        with pytest.raises(TypeError, match="cuda:0"):
            there.numpy()


def test_waits_and_copies_that_wait_are_counted_and_others_are_not() -> None:
    with pretended.cuda() as seen:
        there = torch.arange(4.0, device="cuda")
        mask = there > 1
        positive = torch.eye(3, device="cuda")
        seen.clear()
        for wait in (
            there.tolist,
            there.cpu,
            lambda: there[0].item(),
            lambda: float(there.sum()),
            lambda: bool(mask.all()),
            lambda: there[mask],
            lambda: there.masked_select(mask),
            mask.nonzero,
            lambda: torch.equal(there, there),
            lambda: torch.linalg.cholesky(positive),
            lambda: there.repeat_interleave(mask.long()),
            torch.cuda.synchronize,
        ):
            wait()
            assert seen.waits.total() == 1 and not seen.uploads, seen
            seen.clear()
        for upload in (
            lambda: torch.ones(3).to("cuda"),
            lambda: torch.ones(3).pin_memory().to("cuda"),
            lambda: torch.ones(3).to("cuda", non_blocking=True),
            lambda: torch.tensor([1.0], device="cuda"),
            lambda: there[torch.tensor([0, 1])],
            lambda: there.copy_(torch.ones(4)),
        ):
            upload()
            assert seen.uploads.total() == 1 and not seen.waits, seen
            seen.clear()
        pinned = torch.ones(4).pin_memory()
        pinned[1:].to("cuda", non_blocking=True)
        there.copy_(pinned, non_blocking=True)
        torch.linalg.cholesky_ex(positive)
        there[mask] = 0.0
        there.view(2, 2)[:, 0].t()
        assert pinned.is_pinned() and not torch.ones(4).is_pinned()
        assert not seen.waits and not seen.uploads
        assert there.tolist() == [1, 1, 0, 0]


def test_an_event_is_waited_for_where_nothing_is_queued_behind_it() -> None:
    with pretended.cuda() as seen:
        there = torch.zeros(4, device="cuda")
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream())
        event.synchronize()
        assert seen.waits.total() == 1
        there.add_(1)
        event.synchronize()
        assert seen.waits.total() == 1


def test_launches_are_operations_that_compute() -> None:
    with pretended.cuda() as seen:
        there = torch.zeros(4, device="cuda")
        seen.clear()
        view = there.view(2, 2)[0]
        torch.empty_like(there)
        assert not seen.launches
        view.add_(1)
        torch._foreach_mul_([there, view], 2.0)
        assert seen.launches.total() == 2 and there.tolist() == [4, 4, 0, 0]


def test_what_is_changed_in_place_stays_the_same_tensor() -> None:
    with pretended.cuda():
        there: Tensor = torch.zeros(2, device="cuda")
        assert there.add_(1) is there and torch.sum(there.view(2, 1), 1, out=there) is there


def test_a_fused_step_refuses_a_gradient_in_another_layout() -> None:
    with pretended.cuda():
        weight = nn.Parameter(torch.randn(4, 3, 2, 2).to("cuda"))
        optimizer = torch.optim.AdamW([weight], fused=True)
        weight.grad = torch.randn(4, 3, 2, 2).to("cuda", memory_format=torch.channels_last)
        with pytest.raises(RuntimeError, match="layout"):
            optimizer.step()
        weight.grad = weight.grad.contiguous()
        optimizer.step()


def test_a_module_that_is_moved_twice_lies_in_memory_as_it_says() -> None:
    with pretended.cuda():
        layer = nn.Conv2d(3, 4, 3).to("cuda").to(memory_format=torch.channels_last)
        assert layer.weight.stride() == layer.weight.detach().inner.stride()
