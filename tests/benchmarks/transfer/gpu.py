"""Does it transfer? The setting of the paper's size, for one GPU and about half an hour.

    python tests/benchmarks/transfer/gpu.py --out DIR [--steps N] [--seeds 0 1 2] [--device cuda] [--small]

Source: all 50,000 images of tinyimagenet100-32. Target: Lightly's ResNet-18 for small images, trained with its Barlow
Twins on them. m = 1000, student convnet_128_256_512; tried are it, resnet18 and mobilenetv3_small_100 with small stems
and a small ViT. Tasks: cifar10 and tinyimagenet100-32 with 5,000 and 500 labels. What is in DIR already is not made
again, and after a stop (Ctrl-C) it goes on: the target from its last epoch, the run from its last step, the evaluation
from the last student.
"""

import argparse
import dataclasses
from pathlib import Path

from settings import Setting, run_setting, train_target

GPU = Setting(
    name="gpu",
    images=50_000,
    resnet=("resnet-18", 1.0),
    target_epochs=60,
    stage={
        "student": "convnet_128_256_512",
        "num_images": 1000,
        "steps": 10_000,
        "batch_size": 1024,
        "image_size": 32,
        "precision": "bf16",
    },
    students="convnet_128_256_512,resnet18:stem=small,mobilenetv3_small_100:stem=small,vit_tiny_patch16_224",
    evaluation={"probes": ("knn", "linear", "linear-pooled"), "labels": (5000, 500), "steps": 2000, "full_epochs": 10},
    pieces=True,
)
ARMS = ("scratch", "random", "kmeans", "full", "target")
# shows on a CPU, in minutes, that the script runs; its numbers mean nothing
SMALL = dataclasses.replace(
    GPU,
    name="small",
    images=600,
    resnet=("resnet-9", 0.25),
    target_epochs=1,
    stage={**GPU.stage, "num_images": 20, "steps": 2, "batch_size": 64, "pool": {"size": 2, "max_age": 2}},
    students="convnet_16_32,convnet_8_8",
    evaluation={"tasks": ("cifar10",), "probes": ("knn",), "labels": (100,), "steps": 4, "full_epochs": 1},
    device="cpu",
    task_images=200,
)


def main() -> None:
    """Makes what is missing, and writes results and report of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=GPU.stage["steps"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="on a CPU and on little, to try the script")
    options = parser.parse_args()
    setting = dataclasses.replace(GPU, device=options.device, stage={**GPU.stage, "steps": options.steps})
    if options.small:
        setting, options.seeds = SMALL, [0]
    model = train_target(setting, options.out / "target.pt")
    run_setting(setting, options.out, model, options.seeds, ARMS)


if __name__ == "__main__":
    main()
