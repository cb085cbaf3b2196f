"""What is a set worth? With a strong target and the product's own defaults, against random real images of its bytes.

    python tests/benchmarks/transfer/worth.py --out DIR [--seeds 0 1 2] [--target FILE.pt] [--student NAME] ...

Source: 10,000 images of tinyimagenet100-32. Target: EfficientNet-lite0 with ImageNet weights (see ../strong_target.py),
which sees them enlarged to 128 pixels, or with --target the Barlow Twins that `cpu.py` trained. Sets are distilled with
convnet_32_64_128 and tried with it or with --student. Each seed distils anew and pre-trains every arm anew; 2,000 and
200 labels. What is in DIR already is not made again: a process may be started for each seed.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from cpu import CPU
from settings import Evaluation, of_all_seeds, real_images, task, train_target

from lightly_distill import DistillationStage, evaluate
from lightly_distill.evaluation import findings
from lightly_distill.evaluation.sweep.sweep import OF_BYTES
from lightly_distill.models.targets import Target, as_target, load_target

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from strong_target import SIZE, strong_target

STUDENT, IMAGES = "convnet_32_64_128", 10_000
STAGE: dict[str, Any] = {"batch_size": 256, "image_size": 32, "pool": {"size": 8}}


def run_seed(target: Target, size: int, seed: int, options: argparse.Namespace) -> Evaluation:
    """Distils and evaluates once, unless that is done already."""
    out: Path = options.out
    place = out / f"seed{seed}"
    file = out / f"seed{seed}{'' if options.student == STUDENT else '-' + options.student.replace(':', '-')}.json"
    if not file.exists():
        own = {**STAGE, "target_size": size, "num_images": options.num_images, "steps": options.steps, "seed": seed}
        stage = DistillationStage(target, student=STUDENT, device="cpu", **own)
        kept = out / "representations"
        if not (place / "set").exists():
            begun = place.exists() and any(place.iterdir())
            stage.run(real_images(IMAGES), out=place, resume=begun, representations=kept)
        results = evaluate(
            place,
            options.student,
            [task(name) for name in options.tasks],
            data=real_images(IMAGES),
            target=stage.target,
            seeds=[seed],
            representations=kept,
            device="cpu",
            baselines=options.arms,
            probes=options.probes,
            labels=options.labels,
        )
        (told,) = (result.to_dict() for result in results)
        del told["command"], told["setting"]["set"]  # they name paths of this machine
        file.write_text(json.dumps(told, indent=1) + "\n")
    return Evaluation.from_dict(json.loads(file.read_text()))


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--target", type=Path, help="what cpu.py --only-target wrote; by default EfficientNet-lite0")
    parser.add_argument("--student", default=STUDENT)
    parser.add_argument("--tasks", nargs="+", default=["cifar10"])
    parser.add_argument("--arms", nargs="+", default=["scratch", "random", *OF_BYTES, "full"])
    parser.add_argument("--probes", nargs="+", default=["linear", "linear-pooled", "knn"])
    parser.add_argument("--labels", nargs="+", type=int, default=[2000, 200])
    options = parser.parse_args()
    if options.target:
        target, size = as_target(train_target(CPU, options.target)), 32
    else:
        target, size = load_target(strong_target(options.out / "lite0.safetensors")), SIZE
    whole = of_all_seeds([run_seed(target, size, seed, options) for seed in options.seeds])
    for measure in findings.measures(whole):
        print(measure)
        for name, arm in whole.arms.items():
            values = [100 * value for value in arm.values.get(measure, [])]
            spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            print(f"  {name:17} {statistics.fmean(values):.1f}{spread}  {arm.images} images, {arm.bytes} bytes")
        print(f"  {findings.sentence(whole, measure)}")


if __name__ == "__main__":
    main()
