"""The demo with several seeds: mean and standard deviation of each arm.

    python tests/benchmarks/demo_seeds.py --out DIR [--seeds 0 1 2]

Every seed trains its own target, distils and pre-trains anew; pictures, split and labels stay the same. A seed that is
already in DIR is not run again.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from lightly_distill.evaluation.report import charts
from lightly_distill_integrations import demo


def main() -> None:
    """Runs the seeds, prints the table, draws the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    results = []
    for seed in options.seeds:
        done = options.out / f"seed{seed}" / "results.json"
        if not done.exists():
            demo.run(done.parent, seed=seed, overwrite=True)
        results.append(json.loads(done.read_text()))
    probes, arms = list(results[0]["scratch"]), list(results[0])
    table = {probe: {arm: [result[arm][probe] for result in results] for arm in arms} for probe in probes}
    for probe, row in table.items():
        for arm, values in row.items():
            print(f"{probe:<8} {arm:<20} {100 * np.mean(values):5.1f} +- {100 * np.std(values, ddof=1):.1f}  {values}")
    charts.accuracy_bars(table, options.out / "accuracy.png", f"{demo.STUDENT}, {demo.LABELS} labels")


if __name__ == "__main__":
    main()
