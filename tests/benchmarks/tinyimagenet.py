"""Distils 10,000 real images of tinyimagenet100-32 into 100 and tells by how much the outer loss fell.

    LIGHTLY_DISTILL_DATA=... python tests/benchmarks/tinyimagenet.py --out DIR [--epochs 5] [--steps 400] [--seed 0]

The target, a ResNet-10 trained with Lightly's Barlow Twins on the same images, is kept in DIR and trained once.
The loss is measured on 512 held-out real images, averaged over the pool, before the first step and after the last.
"""

import argparse
from pathlib import Path

import timm
import torch
from lightly.transforms import SimCLRTransform
from safetensors.torch import load_file, save_file

from lightly_distill import DistillationStage
from lightly_distill.data.source import open_source
from lightly_distill_integrations.demo import BarlowTwins, train_target

BACKBONE = "resnet10t"


def main() -> None:
    """Trains or loads the target, distils, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target-only", action="store_true")
    options = parser.parse_args()

    source = open_source("tinyimagenet100-32#train")
    images = source.read(torch.arange(len(source))[:: max(1, len(source) // 10_000)][:10_000])
    weights = options.out / "target.safetensors"
    if weights.exists():
        network = timm.create_model(BACKBONE, num_classes=0)
        model = BarlowTwins(network, network.head_hidden_size)
        model.load_state_dict(load_file(weights))
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)
        model = train_target(images, transform, backbone=BACKBONE, epochs=options.epochs, seed=0)
        save_file(model.state_dict(), weights)
    if options.target_only:
        return

    stage = DistillationStage(
        target=model,
        student="convnet_32_64_128",
        num_images=100,
        steps=options.steps,
        batch_size=512,
        seed=options.seed,
    )
    synthetic = stage.run(images, out=options.out / f"seed{options.seed}", overwrite=True)
    losses = synthetic.provenance["heldout_loss"]
    print(
        f"outer loss on held-out images: {losses['initial']:.4f} -> {losses['final']:.4f} "
        f"({losses['final'] / losses['initial']:.2f} of it) in {synthetic.provenance['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
