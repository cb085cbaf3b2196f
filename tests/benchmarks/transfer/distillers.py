"""Other distillers at the CPU setting: supervised kernel ridge and distribution matching, which need labels.

    python tests/benchmarks/transfer/distillers.py --out DIR --target TARGET [--seeds 0 1 2] [--matching-steps N]

TARGET is the target.pt that cpu.py made. Every distiller takes as many steps as cpu.py, but for distribution matching,
whose step passes nearly the whole source through a network and takes ten times as long. Each
seed distils anew; its sets are tried as in cpu.py with cifar10. What is in DIR already is not made again.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from cpu import CPU
from settings import distil, labelled_images, of_all_seeds, real_images, task, train_target

from lightly_distill import SyntheticSet
from lightly_distill.data.labels import source_labels
from lightly_distill.evaluation.baselines.arms import ARMS, Inputs
from lightly_distill.evaluation.baselines.labelled import LabelledSide
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.method.config import make_config

DISTILLERS = {"supervised kernel ridge": "krr-labels", "distribution matching": "dm"}  # arms of `evaluate`


def main() -> None:
    """Makes what is missing, and writes the results of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--matching-steps", type=int, default=100)
    options = parser.parse_args()
    model = train_target(CPU, options.target)
    source = real_images(CPU.images)
    labels = source_labels(labelled_images(CPU.images), source.kept)
    found = []
    for seed in options.seeds:
        run = options.out / f"seed{seed}"
        distil(CPU, model, run / "run", seed)
        config = make_config(**{**CPU.stage, "seed": seed, "device": CPU.device})
        own, sets = SyntheticSet.load(run / "run"), {}
        for name, arm in DISTILLERS.items():
            place = run / name.replace(" ", "-")
            if not place.exists():
                steps = options.matching_steps if arm == "dm" else config.steps
                side = LabelledSide(source, labels, dataclasses.replace(config, steps=steps), own)
                ARMS[arm].make(Inputs(own, labelled_side=side), seed).save(place)
            sets[name] = SyntheticSet.load(place)
        (result,) = evaluate(
            run / "run",
            CPU.students,
            [task("cifar10")],
            data=source,
            target=model,
            baselines=("scratch", "random"),
            others=sets,
            seeds=[seed],
            device=CPU.device,
            **CPU.evaluation,
        )
        found.append(result)
        (options.out / "results.json").write_text(json.dumps([of_all_seeds(found).to_dict()], indent=2) + "\n")
        print({name: arm.values for name, arm in result.arms.items()}, flush=True)


if __name__ == "__main__":
    main()
