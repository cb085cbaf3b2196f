"""What the scripts of this folder share: source, target, the run of one setting, its results."""

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models import ResNetGenerator
from lightly.models.modules import BarlowTwinsProjectionHead
from lightly.transforms.utils import IMAGENET_NORMALIZE
from torch import Tensor, nn
from tqdm import trange

from lightly_distill import DistillationStage, SyntheticSet
from lightly_distill.data.locate import locate
from lightly_distill.data.source import Source, open_source
from lightly_distill.evaluation import findings
from lightly_distill.evaluation.baselines.arms import ARMS
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.evaluation.report import evaluation_report
from lightly_distill.evaluation.results import Evaluation
from lightly_distill.evaluation.tasks import Task, open_task
from lightly_distill.runs.run_folder import run_metrics
from lightly_distill.runtime.files import replacing
from lightly_distill.runtime.seeding import global_seed

SOURCE = "tinyimagenet100-32#train"
TASKS = ("cifar10", "tinyimagenet100-32")


@dataclass(frozen=True)
class Setting:
    """One setting: what is distilled, and how it is tried.

    Attributes:
        name: For the results.
        images: How many of the source.
        resnet: Name and width of Lightly's ResNet, the target's backbone.
        target_epochs: Of Barlow Twins.
        stage: Options of `DistillationStage`.
        students: That are tried, comma separated.
        evaluation: Options of `evaluate`.
        device: Where.
        task_images: How many of each split of a task; None: all.
        pieces: Whether students are evaluated one after the other, so that a stop costs little.
    """

    name: str
    images: int
    resnet: tuple[str, float]
    target_epochs: int
    stage: dict[str, Any]
    students: str
    evaluation: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    task_images: int | None = None
    pieces: bool = False


class BarlowTwins(nn.Module):
    """As in Lightly's example, on Lightly's own ResNet for small images."""

    def __init__(self, resnet: str, width: float) -> None:
        super().__init__()
        layers = list(ResNetGenerator(resnet, width).children())
        self.backbone = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1))
        self.projection_head = BarlowTwinsProjectionHead(layers[-1].in_features, 1024, 512)

    def forward(self, x: Tensor) -> Tensor:
        """Returns projections (B, 512)."""
        projected: Tensor = self.projection_head(self.backbone(x).flatten(1))
        return projected


def two_views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two random views of each image: (B, 3, 32, 32) in 0..1, augmented as by `SimCLRTransform`.

    By kornia on whole batches: Pillow, an image at a time, takes longer here than the network.
    """
    augment = nn.Sequential(
        K.RandomResizedCrop((32, 32), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(IMAGENET_NORMALIZE["mean"], IMAGENET_NORMALIZE["std"]),
    )
    return augment(images), augment(images)


@cache
def labelled_images(count: int) -> Any:
    """Returns the labelled source: every so many-th image of the training split."""
    whole, _ = locate(SOURCE)
    return whole.select(range(0, len(whole), len(whole) // count)[:count])


@cache
def real_images(count: int) -> Source:
    """Returns the same, decoded once."""
    return open_source(labelled_images(count))


@cache
def task(name: str, count: int | None = None) -> Task:
    """Returns a task, or the first images of both of its splits, decoded once."""
    if count is None:
        return open_task(name, image_size=32)
    train, test = (locate(f"{name}#{split}")[0].select(range(count)) for split in ("train", "test"))
    return open_task((train, test), image_size=32)


def train_target(setting: Setting, path: Path) -> BarlowTwins:
    """Trains the target with Lightly, from where an earlier call stopped, or loads it from `path`."""
    with global_seed(0, "transfer", "target"):
        model = BarlowTwins(*setting.resnet).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = {"images": setting.images, "resnet": list(setting.resnet), "epochs": setting.target_epochs}
    unfinished = path.with_suffix(".unfinished")  # after each epoch
    saved: dict[str, Any] = {}
    for file in (path, unfinished):
        if file.exists() and not saved:
            saved = torch.load(file, weights_only=True, map_location=setting.device)
            if saved["trained"] != trained:
                raise SystemExit(f"{file} was trained with {saved['trained']}, asked for is {trained}: remove it.")
            model.load_state_dict(saved["model"])
    if path.exists():
        return model
    images = real_images(setting.images)
    pixels = images.read(torch.arange(len(images)))
    loader = torch.utils.data.DataLoader(range(len(pixels)), batch_size=256, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=setting.target_epochs * len(loader))
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    criterion = BarlowTwinsLoss()
    model.train()
    path.parent.mkdir(parents=True, exist_ok=True)
    for epoch in (bar := trange(saved.get("epochs", 0), setting.target_epochs, desc="Target", unit="epoch")):
        with global_seed(0, "transfer", "target", epoch):
            for indices in loader:
                views = two_views(pixels[indices].to(setting.device) / 255)
                both = [view.contiguous(memory_format=torch.channels_last) for view in views]
                with torch.autocast(setting.device, torch.bfloat16):  # twice as quick, on a CPU too
                    first, second = (model(view) for view in both)
                loss = criterion(first.float(), second.float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3g}")
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        states = {name: part.state_dict() for name, part in parts.items()}
        with replacing(unfinished) as partial:
            torch.save({"trained": trained, "epochs": epoch + 1, **states}, partial)
    torch.save({"trained": trained, "model": model.state_dict()}, path)
    unfinished.unlink(missing_ok=True)
    return model


def distil(setting: Setting, model: nn.Module, run: Path, seed: int, **options: Any) -> None:
    """Distils into `run`, or goes on where an earlier call stopped."""
    if (run / "set").exists():
        return
    started = time.perf_counter()
    stage = DistillationStage(model, seed=seed, device=setting.device, **{**setting.stage, **options})
    stage.run(real_images(setting.images), out=run, resume=run.exists() and any(run.iterdir()))
    print(f"{run}: distilled in {time.perf_counter() - started:.0f} s", flush=True)


def try_out(
    setting: Setting,
    model: nn.Module,
    run: Path,
    seeds: Sequence[int],
    arms: Sequence[str],
    **options: Any,
) -> list[Evaluation]:
    """Evaluates the set of one run and the arms that its file has no results of yet; returns all there are."""
    file = run / "results.json"
    known = [Evaluation.from_dict(each) for each in json.loads(file.read_text())] if file.exists() else []
    settings = {"tasks": TASKS, **setting.evaluation, **options}
    asked = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    if known and any(known[0].setting[name] != value for name, value in asked.items()):
        raise SystemExit(f"{file} was measured with other settings than {asked}: remove it.")
    tasks = [task(name, setting.task_images) for name in settings.pop("tasks")]
    students = setting.students.split(",")
    for asked_for in students if setting.pieces else [setting.students]:
        before = {each.student: each for each in known}
        first = before.get(asked_for.split(",")[0])
        missing = [arm for arm in arms if first is None or arm not in first.arms]
        if first is not None and not missing:
            continue
        new = evaluate(
            run,
            asked_for,
            tasks,
            data=real_images(setting.images),
            target=model,
            baselines=missing,
            seeds=seeds,
            device=setting.device,
            **settings,
        )
        after = before | {each.student: joined(before.get(each.student, each), each) for each in new}
        known = [after[name] for name in students if name in after]
        with replacing(file) as partial:
            partial.write_text(json.dumps([each.to_dict() for each in known], indent=2) + "\n")
    return known


def run_setting(setting: Setting, out: Path, model: nn.Module, seeds: Sequence[int], arms: Sequence[str]) -> None:
    """Distils and evaluates with each seed, and writes results and report of all."""
    of_seeds: list[list[Evaluation]] = []
    for seed in seeds:
        run = out / f"seed{seed}"
        distil(setting, model, run, seed)
        of_seeds.append(try_out(setting, model, run, [seed], arms))
        merged = [of_all_seeds(results) for results in zip(*of_seeds, strict=True)]
        (out / "results.json").write_text(json.dumps([each.to_dict() for each in merged], indent=2) + "\n")
        evaluation_report.write(merged, SyntheticSet.load(run), out, run_metrics(run))
        print("\n".join(findings.lead(merged)), flush=True)


def joined(first: Evaluation, second: Evaluation) -> Evaluation:
    """Adds arms to an evaluation of the same seeds."""
    arms = {**first.arms, **second.arms}
    names = sorted(arms, key=lambda name: [*ARMS].index(name) if name in ARMS else len(ARMS))
    return Evaluation(first.student, second.setting, first.seeds, {name: arms[name] for name in names})


def of_all_seeds(results: Sequence[Evaluation]) -> Evaluation:
    """Joins evaluations of one seed each, whose sets were distilled with that seed."""
    first, *others = results
    arms = copy.deepcopy(first.arms)
    for other in others:
        for name, arm in other.arms.items():
            arms[name].seconds += arm.seconds
            arms[name].peak_memory += arm.peak_memory
            for key, values in arm.values.items():
                arms[name].values[key] += values
    return Evaluation(first.student, first.setting, [seed for result in results for seed in result.seeds], arms)
