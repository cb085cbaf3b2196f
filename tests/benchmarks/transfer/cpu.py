"""Does it transfer? The setting that fits a laptop: everything is made here, from the target to the report.

    python tests/benchmarks/transfer/cpu.py --out DIR [--steps N] [--seeds 0 1 2] [--only-target]

Source: 10,000 images of tinyimagenet100-32. Target: Lightly's ResNet-9 of half width, trained with its Barlow Twins
on these images. m = 100, student convnet_32_64_128. Tasks: cifar10 and tinyimagenet100-32 with 2,000
and 200 labels. Each seed distils anew and pre-trains every arm anew. What is in DIR already is not made again.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models import ResNetGenerator
from lightly.models.modules import BarlowTwinsProjectionHead
from lightly.transforms import SimCLRTransform
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from tqdm import trange

from lightly_distill import DistillationStage, SyntheticSet, findings, report
from lightly_distill.evaluation import Arm, Evaluation, evaluate
from lightly_distill.run_folder import run_metrics
from lightly_distill.seeding import global_seed
from lightly_distill.source import open_source

STUDENT = "convnet_32_64_128"
IMAGES, SOURCE = 100, 10_000
TASKS, LABELS = ("cifar10", "tinyimagenet100-32"), (2000, 200)
BASELINES = ("scratch", "random", "kmeans", "noise", "full", "target")


class BarlowTwins(nn.Module):
    """As in Lightly's example, on Lightly's own ResNet for small images."""

    def __init__(self) -> None:
        super().__init__()
        resnet = ResNetGenerator("resnet-9", 0.5)
        self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
        self.projection_head = BarlowTwinsProjectionHead(256, 1024, 512)

    def forward(self, x: Tensor) -> Tensor:
        """Returns projections (B, 512)."""
        projected: Tensor = self.projection_head(self.backbone(x).flatten(1))
        return projected


class Views(torch.utils.data.Dataset[list[Tensor]]):
    """Two random views of each image."""

    def __init__(self, images: Tensor) -> None:
        self.images = [to_pil_image(image) for image in images]
        self.transform = SimCLRTransform(input_size=32, min_scale=0.2, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(self.images[index])
        return views


def train_target(images: Tensor, epochs: int, path: Path) -> BarlowTwins:
    """Trains the target, or loads it from `path`."""
    with global_seed(0, "transfer", "target"):
        model = BarlowTwins().to(memory_format=torch.channels_last)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    loader = torch.utils.data.DataLoader(Views(images), batch_size=256, shuffle=True, drop_last=True, num_workers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(loader))
    criterion = BarlowTwinsLoss()
    model.train()
    for epoch in (bar := trange(epochs, desc="Target", unit="epoch")):
        with global_seed(0, "transfer", "target", epoch):
            for first, second in loader:
                loss = criterion(model(first.to(memory_format=torch.channels_last)), model(second))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


def main() -> None:
    """Makes what is missing, and writes results and report of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target-epochs", type=int, default=25)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only-target", action="store_true")
    options = parser.parse_args()

    source = open_source("tinyimagenet100-32#train")
    images = source.read(torch.arange(len(source))[:: len(source) // SOURCE][:SOURCE])
    model = train_target(images, options.target_epochs, options.out / "target.pt")
    if options.only_target:
        return
    stage_options = {"student": STUDENT, "num_images": IMAGES, "steps": options.steps, "batch_size": 512}
    results: list[Evaluation] = []
    for seed in options.seeds:
        started = time.perf_counter()
        stage = DistillationStage(model, seed=seed, **stage_options)
        run = options.out / f"seed{seed}"
        stage.run(images, out=run, resume=(run / "checkpoints").is_dir())
        print(f"seed {seed}: distilled in {time.perf_counter() - started:.0f} s")
        (result,) = evaluate(
            run,
            STUDENT,
            TASKS,
            data=images,
            target=model,
            baselines=BASELINES,
            probes=("knn", "linear", "linear-pooled"),
            labels=LABELS,
            seeds=[seed],
            epochs=options.epochs,
        )
        results.append(result)
        merged = merge(results)
        (options.out / "results.json").write_text(json.dumps([merged.to_dict()], indent=2) + "\n")
        report.write([merged], SyntheticSet.load(run), options.out, run_metrics(run))
    print("\n".join(findings.lead([merge(results)])))


def merge(results: list[Evaluation]) -> Evaluation:
    """Joins evaluations of one seed each, whose sets were distilled with that seed."""
    first, *others = results
    arms = {
        name: Arm(arm.images, arm.bytes, [*arm.seconds], {k: [*v] for k, v in arm.values.items()}, [*arm.peak_memory])
        for name, arm in first.arms.items()
    }
    for other in others:
        for name, arm in other.arms.items():
            arms[name].seconds += arm.seconds
            arms[name].peak_memory += arm.peak_memory
            for key, values in arm.values.items():
                arms[name].values[key] += values
    return Evaluation(first.student, first.setting, [seed for result in results for seed in result.seeds], arms)


if __name__ == "__main__":
    main()
