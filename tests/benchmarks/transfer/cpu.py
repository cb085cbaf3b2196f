"""Does it transfer? The setting that fits a laptop: everything is made here, from the target to the report.

    python tests/benchmarks/transfer/cpu.py --out DIR [--num-images M] [--seeds 0 1 2] [--arms ARM ...] [--only-target]

Source: 10,000 images of tinyimagenet100-32. Target: Lightly's ResNet-9 of half width, trained with its Barlow Twins
on these images. m = 100 (or M), student convnet_32_64_128. Tasks: cifar10 and tinyimagenet100-32 with 2,000
and 200 labels. Each seed distils anew and pre-trains every arm anew. What is in DIR already is not made again.
"""

import argparse
import dataclasses
from pathlib import Path

from settings import Setting, run_setting, train_target

CPU = Setting(
    name="cpu",
    images=10_000,
    resnet=("resnet-9", 0.5),
    target_epochs=60,
    stage={
        "student": "convnet_32_64_128",
        "num_images": 100,
        "steps": 300,
        "batch_size": 256,
        "image_size": 32,
    },
    students="convnet_32_64_128",
    evaluation={"probes": ("knn", "linear", "linear-pooled"), "labels": (2000, 200), "steps": 500, "full_epochs": 30},
)
ARMS = ("scratch", "random", "kmeans", "noise", "full", "target")


def main() -> None:
    """Makes what is missing, and writes results and report of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-images", type=int, default=CPU.stage["num_images"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--only-target", action="store_true")
    options = parser.parse_args()
    model = train_target(CPU, options.out / "target.pt")
    if not options.only_target:
        setting = dataclasses.replace(CPU, stage={**CPU.stage, "num_images": options.num_images})
        run_setting(setting, options.out, model, options.seeds, options.arms)


if __name__ == "__main__":
    main()
