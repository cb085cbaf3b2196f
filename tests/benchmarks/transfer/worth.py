"""What is a set worth? With a strong target and the product's own defaults, against random real images of its bytes.

    python tests/benchmarks/transfer/worth.py --out DIR [--seeds 0 1 2] [--num-images 100] [--steps 600]

Source: 10,000 images of tinyimagenet100-32. Target: EfficientNet-lite0 with ImageNet weights (see ../strong_target.py),
which sees them enlarged to 128 pixels. Student convnet_32_64_128. Each seed distils anew and pre-trains every arm
anew; cifar10, 2,000 and 200 labels. What is in DIR already is not made again: a process may be started for each seed.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from settings import Evaluation, from_dict, of_all_seeds, real_images, task

from lightly_distill import DistillationStage, evaluate
from lightly_distill.evaluation import findings
from lightly_distill.evaluation.sweep.sweep import OF_BYTES
from lightly_distill.models.targets import load_target

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from strong_target import SIZE, strong_target

STUDENT, IMAGES = "convnet_32_64_128", 10_000
STAGE: dict[str, Any] = {"batch_size": 256, "image_size": 32, "target_size": SIZE, "pool": {"size": 8}}
TRANSFER: dict[str, Any] = {
    "baselines": ["scratch", "random", *OF_BYTES, "full"],
    "probes": ["linear", "linear-pooled", "knn"],
    "labels": [2000, 200],
}


def run_seed(target: str, seed: int, out: Path, options: argparse.Namespace) -> Evaluation:
    """Distils and evaluates once, unless that is done already."""
    place, file = out / f"seed{seed}", out / f"seed{seed}.json"
    if not file.exists():
        own = {**STAGE, "num_images": options.num_images, "steps": options.steps, "seed": seed}
        stage = DistillationStage(load_target(target), student=STUDENT, device="cpu", **own)
        kept = out / "representations"
        if not (place / "set").exists():
            begun = place.exists() and any(place.iterdir())
            stage.run(real_images(IMAGES), out=place, resume=begun, representations=kept)
        (result,) = evaluate(
            place,
            STUDENT,
            [task("cifar10")],
            data=real_images(IMAGES),
            target=stage.target,
            seeds=[seed],
            representations=kept,
            device="cpu",
            **TRANSFER,
        )
        told = result.to_dict()
        del told["command"], told["setting"]["set"]  # they name paths of this machine
        file.write_text(json.dumps(told, indent=1) + "\n")
    return from_dict(json.loads(file.read_text()))


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    target = strong_target(options.out / "lite0.safetensors")
    whole = of_all_seeds([run_seed(target, seed, options.out, options) for seed in options.seeds])
    for measure in findings.measures(whole):
        print(measure)
        for name, arm in whole.arms.items():
            values = [100 * value for value in arm.values.get(measure, [])]
            spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            print(f"  {name:17} {statistics.fmean(values):.1f}{spread}  {arm.images} images, {arm.bytes} bytes")
        print(f"  {findings.sentence(whole, measure)}")


if __name__ == "__main__":
    main()
