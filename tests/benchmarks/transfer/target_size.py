"""Does it pay to show the target the originals?

    python tests/benchmarks/transfer/target_size.py --out DIR [--seeds 0 1 2]

Source: 10,000 images of tinyimagenet100-64. Students and synthetic images have 32 pixels; the target, which is
EfficientNet-lite0 with ImageNet weights (see ../strong_target.py), sees 128. Two ways: `originals`, 128 from the 64
pixels of the originals, and `enlarged`, 128 from the 32 pixels of the students, the way before there were two sizes.
Each seed distils anew and pre-trains every arm anew; cifar10, 2,000 and 200 labels, linear probe. The target itself is
probed on tinyimagenet100-64: 5,000 labelled images of the training split, 5,000 of the test split. What is in DIR
already is not made again.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from settings import task

from lightly_distill import DistillationStage, evaluate
from lightly_distill.data.labels import source_labels
from lightly_distill.data.locate import locate
from lightly_distill.data.source import open_source
from lightly_distill.evaluation.probes import linear_accuracy
from lightly_distill.models.targets import load_target, represent

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from strong_target import SIZE, strong_target

STUDENT, S = "convnet_32_64_128", 32
STAGE: dict[str, Any] = {"num_images": 100, "steps": 300, "batch_size": 256, "target_size": SIZE, "target_dims": 256}
TRANSFER: dict[str, Any] = {"baselines": ["scratch", "random"], "probes": ["linear"], "labels": [2000, 200]}
WAYS = ("originals", "enlarged")


def images_of(split: str, count: int, way: str) -> Any:
    """Returns labelled images as a way gives them to the target: at 64 pixels, or made small first."""
    whole, _ = locate(f"tinyimagenet100-64#{split}")
    chosen = whole.select(range(0, len(whole), len(whole) // count)[:count])
    if way == "originals":
        return chosen
    small = open_source(chosen, image_size=S)
    return small.read(torch.arange(len(small)))


def probe_target(target: str, way: str, count: int) -> float:
    """Returns the accuracy of a linear probe of the target's representations."""
    found = {}
    for split in ("train", "test"):
        source = open_source(images_of(split, count, way), image_size=SIZE)
        images = source.stream(torch.arange(len(source)).split(64))
        labels = source_labels(images_of(split, count, "originals"), source.kept)
        found[split] = represent(load_target(target), images, device="cpu").numpy(), labels.numpy()
    return linear_accuracy(*found["train"], *found["test"])


def run_seed(target: str, way: str, seed: int, count: int, out: Path, steps: int) -> dict[str, Any]:
    """Distils and evaluates once; returns accuracies by arm and measure."""
    place, source = out / f"{way}-{seed}", images_of("train", count, way)
    kept = out / "representations"
    options = {**STAGE, "steps": steps, "seed": seed}
    stage = DistillationStage(target, student=STUDENT, image_size=S, device="cpu", **options)
    if not (place / "set").exists():
        stage.run(source, out=place, resume=place.exists() and any(place.iterdir()), representations=kept)
    (result,) = evaluate(
        place,
        STUDENT,
        [task("cifar10")],
        data=source,
        target=stage.target,
        seeds=[seed],
        representations=kept,
        **TRANSFER,
    )
    return {"arms": {name: arm.values for name, arm in result.arms.items()}, "failed": result.failed}


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=STAGE["steps"])
    options = parser.parse_args()
    target = strong_target(options.out / "lite0.safetensors")
    for way in options.ways:
        file = options.out / f"{way}.json"
        known = json.loads(file.read_text()) if file.exists() else {"seeds": {}}
        if "target" not in known:
            known["target"] = probe_target(target, way, min(5000, options.images))
            file.write_text(json.dumps(known, indent=1) + "\n")
        for seed in options.seeds:
            if str(seed) not in known["seeds"]:
                found = run_seed(target, way, seed, options.images, options.out, options.steps)
                known["seeds"][str(seed)] = found
                file.write_text(json.dumps(known, indent=1) + "\n")
        print(f"{way}: target itself {100 * known['target']:.1f}")
        for arm in ("scratch", "random", "distilled"):
            for measure in ("cifar10/linear@2000", "cifar10/linear@200"):
                values = [100 * each["arms"][arm][measure][0] for each in known["seeds"].values()]
                spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                print(f"  {arm:9} {measure:20} {statistics.fmean(values):.1f}{spread}")


if __name__ == "__main__":
    main()
