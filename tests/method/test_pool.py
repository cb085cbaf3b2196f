from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import reference
import tiny
from lightly_distill.errors import DistillError
from lightly_distill.method.config import PoolConfig
from lightly_distill.method.pool import StudentPool
from lightly_distill.models.rows import Layout
from lightly_distill.runtime.seeding import generator

ONE = PoolConfig(size=1, **tiny.PLAIN_POOL)


def make_pool(seed: int = 0, dropout: float = 0.0, **options: float) -> tuple[StudentPool, Tensor, Tensor]:
    g = generator(7, "pool")
    images, reps = torch.randn(6, 3, 8, 8, generator=g), torch.randn(6, 5, generator=g)
    config = PoolConfig(**{"size": 4, "max_age": 6, **tiny.PLAIN_POOL, **options})
    return StudentPool([("tiny", lambda: tiny.student(dropout))], config, images, Layout(5), seed), images, reps


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten().float() for value in module.state_dict().values()])


def test_warm_up_trains_each_student_for_as_many_steps_as_its_age_says() -> None:
    pool, images, reps = make_pool(size=8)
    fresh, *_ = make_pool(size=8)
    pool.warm_up(images, reps)
    ages = [slot.age for slot in pool.slots]
    assert all(1 <= age <= 6 for age in ages) and len(set(ages)) > 2
    for slot, other in zip(pool.slots, fresh.slots, strict=True):
        assert int(slot.student[1].num_batches_tracked) == slot.age
        if slot.age < 6:  # the step to the largest age would replace it
            for _ in range(slot.age):
                fresh.advance(other, images, reps)
            assert torch.equal(weights(slot.student), weights(other.student))


def test_a_training_step_equals_the_plain_reference() -> None:
    pool, images, reps = make_pool()
    slot = pool.slots[0]
    twin_model, twin_head = tiny.student(), nn.Linear(32, 5)
    twin_model.load_state_dict(slot.student.state_dict())
    twin_head.load_state_dict(slot.head.vector.state_dict())
    twin = reference.new_student(lambda: (twin_model, twin_head), torch.float32)
    for _ in range(5):
        pool.advance(slot, images, reps)
        reference.train_student(twin, images, reps)
    torch.testing.assert_close(weights(slot.student), weights(twin.model), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(slot.head), weights(twin.head), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 5, 9])
def test_without_batch_norm_a_training_step_in_chunks_is_the_same(chunk_size: int) -> None:
    def plain() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())

    _, images, reps = make_pool()
    whole, parts = (StudentPool([("plain", plain)], ONE, images, Layout(5), seed=0) for _ in range(2))
    parts.chunk_size = chunk_size
    for _ in range(4):
        whole.advance(whole.slots[0], images, reps)
        parts.advance(parts.slots[0], images, reps)
    torch.testing.assert_close(weights(parts.slots[0].student), weights(whole.slots[0].student), rtol=1e-4, atol=1e-6)


def test_in_chunks_batch_norms_statistics_go_as_far_as_in_one_step() -> None:
    pool, images, reps = make_pool()
    same = images[:1].repeat(6, 1, 1, 1)  # so that each chunk has the mean of the whole
    other, *_ = make_pool()
    other.chunk_size = 2
    for each in (pool, other):
        each.advance(each.slots[0], same, reps)
    norm, chunked = pool.slots[0].student[1], other.slots[0].student[1]
    torch.testing.assert_close(chunked.running_mean, norm.running_mean, rtol=1e-4, atol=1e-6)
    assert chunked.momentum == norm.momentum == 0.1


def test_in_chunks_no_image_weighs_much_more_than_another_in_batch_norms_statistics() -> None:
    _, images, reps = make_pool()
    images, reps = torch.cat([images, images[:1] + 10]), torch.cat([reps, reps[:1]])  # the seventh would be left alone
    means = []
    for chunk_size in (None, 3):
        pool = StudentPool([("tiny", tiny.student)], replace(ONE, lr=1e-30, max_age=100), images, Layout(5), seed=0)
        pool.chunk_size = chunk_size
        for _ in range(60):
            pool.advance(pool.slots[0], images, reps)
        means.append(pool.slots[0].student[1].running_mean)
    torch.testing.assert_close(means[1], means[0], rtol=0.25, atol=0.05)


def test_chunks_of_two_train_batch_norm_on_a_map_of_one_pixel() -> None:
    student = lambda: nn.Sequential(nn.AvgPool2d(8), nn.BatchNorm2d(3), nn.Flatten())  # noqa: E731
    _, images, reps = make_pool()
    images, reps = images[:5], reps[:5]
    pool = StudentPool([("one", student)], ONE, images, Layout(5), seed=0)
    pool.chunk_size = 2
    pool.advance(pool.slots[0], images, reps)
    assert pool.slots[0].age == 1


def test_a_student_of_age_T_is_replaced_by_a_fresh_one_that_goes_on_training() -> None:
    pool, images, reps = make_pool(size=1, max_age=3)
    first = pool.slots[0].student
    start = weights(first)
    for age in (1, 2):
        pool.advance(pool.slots[0], images, reps)
        assert pool.slots[0].student is first and pool.slots[0].age == age
    pool.advance(pool.slots[0], images, reps)
    slot = pool.slots[0]
    assert slot.student is not first and (slot.age, slot.births) == (0, 1)
    assert int(slot.student[1].num_batches_tracked) == 0 and not slot.optimizer.state
    assert not torch.equal(weights(slot.student), start)  # another initialisation, not the first one again
    fresh = weights(slot.student)
    pool.advance(slot, images, reps)
    assert pool.slots[0] is slot and slot.age == 1 and not torch.equal(weights(slot.student), fresh)


def test_ages_stay_spread_and_every_slot_goes_on_training_over_many_lifetimes() -> None:
    pool, images, reps = make_pool(size=4, max_age=10)
    pool.warm_up(images, reps)
    seen: Counter[int] = Counter()
    for step in range(4 * 10 * 10):  # ten lifetimes of each of four slots
        slot = pool.draw(step)
        seen[slot.age] += 1
        pool.advance(slot, images, reps)
    assert set(range(10)) <= set(seen) <= set(range(11))
    # the authors' released code would use an untrained student in nearly every step from the first expiry on
    assert seen[0] < 2 * 400 / 10
    assert max(seen[age] for age in range(10)) < 3 * min(seen[age] for age in range(10))
    assert all(slot.births >= 5 for slot in pool.slots)


def test_draws_are_uniform_and_a_function_of_seed_and_step() -> None:
    pool, *_ = make_pool()
    other, *_ = make_pool(seed=1)
    draws = [pool.draw(step).index for step in range(2000)]
    assert all(400 < count < 600 for count in Counter(draws).values())
    assert draws == [pool.draw(step).index for step in range(2000)]
    assert draws != [other.draw(step).index for step in range(2000)]


def test_a_mixed_pool_takes_its_architectures_in_turn() -> None:
    images = torch.randn(4, 3, 8, 8)
    wide = lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 40))  # noqa: E731
    pool = StudentPool([("tiny", tiny.student), ("wide", wide)], PoolConfig(size=3), images, Layout(5), seed=0)
    assert [(slot.name, slot.features.width) for slot in pool.slots] == [("tiny", 32), ("wide", 40), ("tiny", 32)]


def test_a_restored_pool_goes_on_as_the_old_one_bit_for_bit() -> None:
    pool, images, reps = make_pool(dropout=0.3)  # dropout draws from the global generator
    pool.warm_up(images, reps)
    pool.advance(pool.slots[2], images, reps)
    tensors, counts = pool.tensors(), pool.counts()
    tensors = {name: value.clone() for name, value in tensors.items()}
    restored, *_ = make_pool(dropout=0.3)
    restored.restore(tensors, counts)
    torch.manual_seed(99)  # whatever the global generator is at
    for step in range(30):
        for p in (pool, restored):
            p.advance(p.draw(step), images, reps)
    for a, b in zip(pool.slots, restored.slots, strict=True):
        assert (a.age, a.births) == (b.age, b.births)
        assert torch.equal(weights(a.student), weights(b.student)) and torch.equal(weights(a.head), weights(b.head))


def test_restored_momentum_lies_in_memory_as_it_did() -> None:
    pool, images, reps = make_pool(size=1)
    pool.advance(pool.slots[0], images, reps)
    restored, *_ = make_pool(size=1)
    restored.restore({name: value.contiguous() for name, value in pool.tensors().items()}, pool.counts())
    old, new = (p.slots[0].optimizer.state[p.slots[0].student[0].weight]["momentum_buffer"] for p in (pool, restored))
    assert torch.equal(old, new) and old.stride() == new.stride() and not new.requires_grad


def test_dropout_draws_anew_at_each_step_and_for_each_student() -> None:
    pool, images, reps = make_pool(dropout=0.5, lr=1e-30)  # a rate at which no weight moves: only dropout differs
    masks = []

    def watch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        masks.append(bytes((output == 0).numpy()))

    for slot in pool.slots[:2]:
        slot.student.load_state_dict(pool.slots[0].student.state_dict())
        slot.student[4].register_forward_hook(watch)
        for _ in range(3):
            pool.advance(slot, images, reps)
    assert len(set(masks)) == 6


def test_training_leaves_the_synthetic_set_and_the_global_generator_alone() -> None:
    pool, images, reps = make_pool()
    images.requires_grad_()
    state = torch.get_rng_state()
    pool.warm_up(images, reps)
    pool.advance(pool.slots[0], images, reps)
    assert images.grad is None and torch.equal(torch.get_rng_state(), state)


def test_a_diverging_student_is_named_before_its_weights_are_touched() -> None:
    pool, images, reps = make_pool()
    before = weights(pool.slots[1].student)[:200]  # convolution weights; batch norm's statistics do move
    with pytest.raises(DistillError, match=r"Student 1 \(tiny\) diverged at training step 1 .* lower pool.lr, now 0.1"):
        pool.advance(pool.slots[1], images, reps * float("inf"))
    assert torch.equal(weights(pool.slots[1].student)[:200], before)


def test_a_compiled_student_takes_the_same_steps() -> None:
    plain, images, reps = make_pool(size=1)
    compiled = StudentPool([("tiny", tiny.student)], ONE, images, Layout(5), seed=0, compile=True)
    assert compiled.slots[0].student._compiled_call_impl is not None
    for _ in range(3):
        plain.advance(plain.slots[0], images, reps)
        compiled.advance(compiled.slots[0], images, reps)
    torch.testing.assert_close(
        weights(compiled.slots[0].student), weights(plain.slots[0].student), rtol=1e-4, atol=1e-5
    )
    assert set(compiled.tensors()) == set(plain.tensors())


def test_a_student_that_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(self: nn.Module) -> None:
        self._compiled_call_impl = lambda *args: (_ for _ in ()).throw(RuntimeError("no C++ compiler"))

    monkeypatch.setattr(nn.Module, "compile", no_compiler)
    with pytest.raises(DistillError, match="Student 'tiny' cannot be compiled, leave --compile out: no C"):
        StudentPool(
            [("tiny", tiny.student)],
            ONE,
            torch.randn(2, 3, 8, 8),
            Layout(5),
            seed=0,
            compile=True,
        )


def test_each_training_step_sees_its_own_mixtures_and_crops_the_same_in_every_run() -> None:
    def seen(**ways: bool) -> list[Tensor]:
        _, images, reps = make_pool()
        pool = StudentPool([("tiny", tiny.student)], replace(ONE, max_age=9, **ways), images, Layout(5), seed=0)
        shown: list[Tensor] = []
        pool.slots[0].student.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0].clone()))
        for _ in range(3):
            pool.advance(pool.slots[0], images, reps)
        return shown

    for ways in ({"mixup": True}, {"crop_and_flip": True}):
        first, again = seen(**ways), seen(**ways)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    plain = seen()
    assert torch.equal(plain[0], plain[1])
