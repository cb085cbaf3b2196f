"""The pool of online students, each at another point of its training on the synthetic set."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from lightly_distill.data.augment import vary
from lightly_distill.errors import DistillError
from lightly_distill.method.compiled import Compiler
from lightly_distill.method.config import PoolConfig
from lightly_distill.method.memory import Estimate, estimate
from lightly_distill.method.step import chunks_of
from lightly_distill.method.watch import Watch
from lightly_distill.models.recipe import make_optimizer
from lightly_distill.models.rows import Layout, RowHead, row_loss, with_rows
from lightly_distill.runtime import seeding
from lightly_distill.runtime.device import free_memory, send_module
from lightly_distill.runtime.processes import SOLO, Team
from lightly_distill.runtime.progress import Progress

_TIMED = 6  # training steps that show how long all take, at most
_LONG = 1.0  # seconds after which there are enough of them

StudentBuilder = Callable[[], nn.Module]


@dataclass
class Slot:
    """One place of the pool and the student that holds it now.

    Attributes:
        index: Place in the pool.
        name: Architecture of the student.
        student: Images (M, C, H, W) to rows of features (M, F).
        features: Layout of these rows.
        head: Linear layers, features to targets (M, D).
        optimizer: Over both.
        age: Training steps that this student has taken.
        births: Students that this slot has had before.
    """

    index: int
    name: str
    student: nn.Module
    features: Layout
    head: RowHead
    optimizer: torch.optim.Optimizer
    age: int = 0
    births: int = 0


class StudentPool:
    """Online students of KRR-ST, Algorithm 1 (arXiv:2310.06511).

    A student is trained on all synthetic images at once. Where that needs too much memory, the gradient is added up
    over chunks of them: the same step for a student without batch norm; batch norm then normalises each chunk by
    itself, and its running statistics move as far as in one step.

    Args:
        students: Name and builder of each architecture; slot i gets number i modulo their count.
        config: Size, lifetime and optimizer.
        images: Synthetic images, shape (M, C, H, W); here only to measure the features' width.
        targets: Layout of the targets.
        seed: Root seed.
        team: The processes, and whether each holds a part of the pool or all of it.
        compile: With torch.compile; students of one architecture share the compiled code.

    Attributes:
        slots: Those of this process.
        chunk_size: Images that a student is trained on at a time. None: all.
        watch: Looks at losses.
    """

    def __init__(
        self,
        students: Sequence[tuple[str, StudentBuilder]],
        config: PoolConfig,
        images: Tensor,
        targets: Layout,
        seed: int,
        team: Team = SOLO,
        *,
        compile: bool = False,
    ) -> None:
        self.config = config
        self._compiler = Compiler(len(students)) if compile else None
        self.seed = seed
        self.chunk_size: int | None = None
        self.watch = Watch(images.device)
        self.team = team
        self._students = students
        self._probe = images.detach()[:2]
        self.targets = targets
        self.slots = [self._born(index, births=0) for index in range(team.split.index, config.size, team.split.count)]

    def _born(self, index: int, births: int) -> Slot:
        name, build = self._students[index % len(self._students)]
        device = self._probe.device
        with seeding.global_seed(self.seed, "student", index, births):
            # channels last: convolutions of the kernel pass take two thirds of the time, on a CPU too
            student = send_module(build(), device).to(memory_format=torch.channels_last)
            student, features = self._tried(name, student)
            head = send_module(RowHead(features, self.targets), device)
        optimizer = make_optimizer(student, head, self.config)
        return Slot(index, name, student, features, head, optimizer, births=births)

    def _tried(self, name: str, student: nn.Module) -> tuple[nn.Module, Layout]:
        """Returns a student whose output is rows, compiled if asked to, and their layout."""
        student, features = with_rows(student, self._probe, self.targets.grid)
        if self._compiler is not None:
            self._compiler.compile(name, student, self._probe)
        return student, features

    def fit_memory(self, images: Tensor, batch_size: int, chunk_size: int | str | None) -> Estimate:
        """Decides how many synthetic images a student is given at a time.

        Args:
            images: Synthetic images, shape (M, C, H, W).
            batch_size: Real images of a step.
            chunk_size: As in `DistillConfig`.

        Returns:
            What the steps will need.
        """
        divide = self.team.divide
        share = len(range(batch_size)[divide.share(batch_size)])
        students = list({slot.name: slot.student for slot in self.slots}.values())
        free, here = free_memory(images.device), self.team.all.on_this_machine()
        if images.device.type == "cpu":  # a GPU is one process's own
            free //= here
        plan = estimate(students, images, share, chunk_size, processes=divide.count, free=free)
        # the least of all processes, which must agree
        sizes = [size for size in self.team.all.gather(plan.chunk_size) if size is not None]
        self.chunk_size = min(sizes, default=None)
        return plan

    def draw(self, step: int) -> Slot:
        """Returns the slot of an outer step, drawn uniformly from those of this process."""
        number = step * self.team.split.count + self.team.split.index
        draw = torch.randint(len(self.slots), (1,), generator=seeding.generator(self.seed, "draw", number))
        return self.slots[int(draw)]

    def warm_up(
        self, images: Tensor, representations: Tensor, tell: Callable[[int, float], None] | None = None
    ) -> None:
        """Trains each student for a number of steps drawn uniformly from 1..T, so that the ages are spread.

        Args:
            images: Synthetic images.
            representations: Their targets.
            tell: Is told, after the first training steps, how many there are and how many seconds all take.
        """
        ages = self._first_ages()
        if tell is not None:
            each = self._time_some(ages, images, representations)
            tell(sum(ages), sum(age * each[slot.name] for slot, age in zip(self.slots, ages, strict=True)))
        done = sum(slot.age for slot in self.slots)  # of a warm-up that is tried again too
        with Progress("Warming up the pool", sum(ages), "step", shown=self.team.all.main, done=done) as progress:
            for slot, age in zip(self.slots, ages, strict=True):
                while slot.age < age:
                    self._train(slot, images, representations)
                    progress.add()
        self.watch.settle()

    def _time_some(self, ages: Sequence[int], images: Tensor, representations: Tensor) -> dict[str, float]:
        """Takes the first training steps of a student of each architecture, and returns the seconds of one by name."""
        seconds: dict[str, float] = {}
        together = self.team.divide.count > 1  # who train a student together take as many steps
        for slot, age in sorted(zip(self.slots, ages, strict=True), key=lambda pair: -pair[1]):
            if slot.name in seconds:
                continue
            each: list[float] = []
            while slot.age < age and len(each) < _TIMED and (together or sum(each[1:]) < _LONG):
                started = time.perf_counter()
                self._train(slot, images, representations)
                self.watch.settle()
                each.append(time.perf_counter() - started)
            seconds[slot.name] = median(each[1:] or each or [0.0])  # the first one loads and chooses
        return seconds

    def _first_ages(self) -> list[int]:
        """Returns the ages of the students of this process after the warm-up."""
        generator = seeding.generator(self.seed, "warm-up")
        of_all = torch.randint(1, self.config.max_age + 1, (self.config.size,), generator=generator).tolist()
        return [of_all[slot.index] for slot in self.slots]

    def advance(self, slot: Slot, images: Tensor, representations: Tensor) -> None:
        """Moves a student one step on, and replaces it by a fresh one of age 0 when it has taken T steps.

        The authors' released code does not reset the count, so that from then on every draw replaces the student again.
        The paper's Algorithm 1 does, and so do we.
        """
        # a student that the warm-up left at age T has had its outer step and takes no more than T training steps
        if slot.age < self.config.max_age:
            self._train(slot, images, representations)
        if slot.age >= self.config.max_age:
            self.slots[self.slots.index(slot)] = self._born(slot.index, slot.births + 1)

    def _train(self, slot: Slot, images: Tensor, representations: Tensor) -> None:
        """One SGD step on `mean((head(student(X_s)) - Y_s)^2)` over all synthetic images, train mode."""
        images, representations = self._varied(slot, images.detach(), representations.detach())
        slot.student.train()
        slot.optimizer.zero_grad()
        chunks = chunks_of(images, self.chunk_size)
        loss = torch.zeros((), device=images.device)
        with (
            seeding.global_seed(self.seed, "train", slot.index, slot.births, slot.age, device=images.device),
            _slower_statistics(slot.student, len(chunks)),
        ):
            for chunk, truth in zip(chunks, chunks_of(representations, self.chunk_size), strict=True):
                loss_of = row_loss(slot.head(slot.student(chunk)).float(), truth, self.targets)
                part = loss_of * (len(chunk) / len(images))
                with torch.autocast(images.device.type, enabled=False):
                    part.backward()  # type: ignore[no-untyped-call]
                loss += part.detach()
        self.watch.look(loss.reshape(1), partial(_require_converging, slot, slot.age + 1, representations))
        self._keep_alike(slot)
        try:
            slot.optimizer.step()
        except torch.OutOfMemoryError as error:  # some weights have changed: not to be tried again
            raise DistillError(
                f"There is no memory for the optimizer of student {slot.index} ({slot.name}): lower pool.size."
            ) from error
        slot.optimizer.zero_grad(set_to_none=True)  # of a large pool, gradients of students at rest fill a device
        slot.age += 1

    def _varied(self, slot: Slot, images: Tensor, representations: Tensor) -> tuple[Tensor, Tensor]:
        """Augments a batch by draws of this training step."""
        config, draw = self.config, seeding.generator(self.seed, "vary", slot.index, slot.births, slot.age)
        return vary(images, representations, self.targets.mirrored, draw, crop=config.crop_and_flip, mixup=config.mixup)

    def _keep_alike(self, slot: Slot) -> None:
        """Averages what rounding, which on a GPU is not the same twice, may have made different between processes."""
        if self.team.divide.count > 1:
            gradients = [p.grad for part in (slot.student, slot.head) for p in part.parameters() if p.grad is not None]
            statistics = [buffer for buffer in slot.student.buffers() if buffer.is_floating_point()]
            tensors = (*gradients, *statistics)
            for tensor, mean in zip(tensors, self.team.divide.mean(*tensors), strict=True):
                tensor.copy_(mean)

    def counts(self) -> list[dict[str, int]]:
        """Returns age and births of each slot, those of all processes."""
        own = {slot.index: {"age": slot.age, "births": slot.births} for slot in self.slots}
        everyone = {index: each for part in self.team.split.gather(own) for index, each in part.items()}
        return [everyone[index] for index in sorted(everyone)]

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of all slots by flat name, those of all processes."""
        return self.team.split.gather_tensors(self._own_tensors())

    def _own_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for slot in self.slots:
            prefix = f"pool.{slot.index}."
            for part, module in (("student", slot.student), ("head", slot.head)):
                tensors |= {f"{prefix}{part}.{name}": value for name, value in module.state_dict().items()}
            for number, parameter in enumerate(slot.optimizer.param_groups[0]["params"]):
                kept = slot.optimizer.state.get(parameter, {}).items()
                tensors |= {f"{prefix}optimizer.{number}.{name}": value for name, value in kept if value is not None}
        return tensors

    def restore(self, tensors: dict[str, Tensor], counts: Sequence[dict[str, int]]) -> None:
        """Restores what `tensors` and `counts` returned.

        Raises:
            KeyError: If a tensor or a count is missing.
            RuntimeError: If a tensor has another shape than the student's.
            ValueError: If these are not as many slots as this pool has.
        """
        if len(counts) != self.config.size:
            raise ValueError(f"{len(counts)} students instead of {self.config.size}")
        for place, old in enumerate(self.slots):
            count = counts[old.index]
            slot = self.slots[place] = self._born(old.index, count["births"])
            slot.age = count["age"]
            prefix = f"pool.{slot.index}."
            own = {_renamed(name.removeprefix(prefix)): v for name, v in tensors.items() if name.startswith(prefix)}
            for part, module in (("student.", slot.student), ("head.", slot.head)):
                module.load_state_dict({n.removeprefix(part): v for n, v in own.items() if n.startswith(part)})
            group = slot.optimizer.param_groups[0]
            for number, parameter in enumerate(group["params"]):
                start, counted = f"optimizer.{number}.", parameter.device if group["fused"] else "cpu"
                for name, value in own.items():
                    if name.startswith(start):
                        # as the parameter lies in memory: a checkpoint does not keep channels last
                        kept = torch.empty_like(parameter).copy_(value) if value.ndim else value.to(counted, copy=True)
                        slot.optimizer.state[parameter][name.removeprefix(start)] = kept


def _require_converging(slot: Slot, step: int, representations: Tensor, loss: Sequence[float]) -> None:
    """Raises an error if the loss of a training step, of a student of this slot, is not finite."""
    if not math.isfinite(loss[0]):
        lr, size = slot.optimizer.param_groups[0]["lr"], representations.square().mean().sqrt().item()
        raise DistillError(
            f"Student {slot.index} ({slot.name}) diverged at training step {step} on the synthetic set "
            f"(loss {loss[0]}): lower pool.lr, now {lr:g}. The larger the target's representations "
            f"(root mean square here: {size:.3g}), the lower it must be."
        )


def _renamed(name: str) -> str:
    """Returns the name of a tensor of a slot as it is now, given that of a version before there were maps."""
    part, _, rest = name.partition(".")
    if part == "momentum":
        return f"optimizer.{rest}.momentum_buffer"
    return f"head.vector.{rest}" if part == "head" and rest in ("weight", "bias") else name


@contextmanager
def _slower_statistics(student: nn.Module, chunks: int) -> Iterator[None]:
    """Lets batch norm's running statistics take as many steps as there are chunks, together as long as one step."""
    norms = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms if chunks > 1 else ():
        norm.momentum = None if norm.momentum is None else 1 - (1 - norm.momentum) ** (1 / chunks)
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
