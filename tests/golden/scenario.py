"""One small story on real digits: a run that is interrupted, its resume, a student, an evaluation, a dry-run publish.

`python tests/golden/scenario.py` writes `tests/golden/expected.json` and `tests/golden/kept/`. Both were written by the
code before it moved into folders, so that the moves, and whatever comes after them, can be compared with it: write them
anew only when a change of the numbers is meant, and say so in the commit.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightly_distill import DistillationStage, evaluate, pretrain

HERE = Path(__file__).parent
KEPT, EXPECTED = HERE / "kept", HERE / "expected.json"
STOP_AFTER, STEPS = 7, 12
PAPER = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-3}
STAGE: dict[str, Any] = {
    "student": "convnet_4_8,convnet_4_8_in",  # a mixed pool: batch norm and instance norm
    "precision": "fp32",
    "num_images": 10,
    "steps": STEPS,
    "batch_size": 64,
    "source_views": 2,
    "holdout": 64,
    "log_every": 1,
    "checkpoint_every": 100,
    "seed": 3,
    "device": "cpu",
    "pool": {"size": 4, "max_age": 5, "mixup": False, "crop_and_flip": False, **PAPER},
    "target_dims": None,
    "target_map": 0,
    "map_dims": 64,
    "eight_bits": False,
    "outer": {"grain": 1},
    "image_quality": None,
    "target_bits": 8,
}
STUDENT = "convnet_4_8"
EVALUATION: dict[str, Any] = {
    "baselines": ("scratch", "random", "kmeans", "noise", "krr-labels", "dm", "full", "target"),
    "probes": ("knn", "linear", "linear-pooled", "finetune", "data-free"),
    "labels": (50,),
    "seeds": 2,
    "steps": 5,
    "mixup": False,
    "crop_and_flip": False,
    "color_jitter": 0,
    "full_epochs": 2,
    "finetune_steps": 10,
    "device": "cpu",
}


def digits() -> tuple[Tensor, list[int]]:
    """600 handwritten digits, uint8 (600, 3, 8, 8), and their labels."""
    data = load_digits()
    images = torch.from_numpy(data.images[:600] / 16 * 255).byte()[:, None].expand(-1, 3, -1, -1).contiguous()
    return images, data.target[:600].tolist()


def model() -> nn.Module:
    """A target; its weights depend on nothing but torch's generator."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Tanh(), nn.AvgPool2d(4), nn.Flatten())


class StopAfter:
    """A log that sends SIGTERM to this very process when a step is told."""

    def start(self) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        if row["step"] == STOP_AFTER:
            os.kill(os.getpid(), signal.SIGTERM)


def play(folder: Path) -> dict[str, Any]:
    """Plays the story in an empty folder; returns what is compared, JSON-able but for `tensors`."""
    images, labels = digits()
    stage = DistillationStage(model(), **STAGE)
    source = [(image, label) for image, label in zip(images[:500], labels, strict=False)]
    run = folder / "run"
    try:
        stage.run(source, out=run, log=StopAfter())
    except SystemExit as left:
        assert left.code == 128 + signal.SIGTERM
    shutil.copytree(run, folder / "interrupted")
    synthetic = stage.run(source, out=run, resume=True)
    pretrain(STUDENT, synthetic, recipe="paper", steps=10, device="cpu", out=folder / "student", verbose=False)
    task = ("digits", source, [(image, label) for image, label in zip(images[500:], labels[500:], strict=True)])
    results = evaluate(run, STUDENT, [task], data=source, target=model(), **EVALUATION, out=folder / "evaluation")
    synthetic.push_to_hub(
        "me/golden",
        dry_run=folder / "published",
        data=source,
        target=model(),
        license="cc-by-4.0",
        evaluation=folder / "evaluation",
    )
    return {
        "tensors": {"images": synthetic.images, "representations": synthetic.representations},
        "student": student_weights(folder / "student"),
        "source_index": synthetic.source_index.tolist(),
        "provenance": {
            "source": synthetic.provenance["source"],
            "target": synthetic.provenance["target"]["sha256"],
            "heldout_loss": synthetic.provenance["heldout_loss"],
        },
        "metrics": [without(row, "seconds_per_step") for row in rows(run / "metrics.jsonl")],
        "arms": {name: arm.values for name, arm in results[0].arms.items()},
        "bytes": {name: arm.bytes for name, arm in results[0].arms.items()},
        "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        "config": yaml.safe_load((run / "config.yaml").read_text()),
        "card": card(folder / "published" / "README.md"),
    }


def student_weights(folder: Path) -> dict[str, float]:
    """The sum of the squares of each tensor of a student."""
    weights = load_file(folder / "model.safetensors")
    return {name: float(value.double().square().sum()) for name, value in weights.items()}


def card(path: Path) -> list[str]:
    """The lines of a card, without what differs from run to run and from machine to machine."""
    text = path.read_text(encoding="utf-8")
    for name in ("time", "peak memory", "threads", "versions", "size"):
        text = re.sub(rf"(?m)^\| {name} \|.*$", f"| {name} | ... |", text)
    return text.splitlines()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def machine() -> str:
    """What decides the last bits of a float."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
    facts = (re.search(rf"(?m)^{name}\s*: (.*)$", told) for name in ("model name", "cpu family", "model", "stepping"))
    kind = " ".join(fact[1] for fact in facts if fact) or told
    return f"{kind}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for value in tensors.values():
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def _keep(folder: Path) -> None:
    """Keeps what somebody has on disk: an interrupted run, a set, a student, a published set."""
    shutil.rmtree(KEPT, ignore_errors=True)
    large = shutil.ignore_patterns("pictures", "representations", "step-00000000*")
    for name in ("interrupted", "student", "published"):
        shutil.copytree(folder / name, KEPT / name, ignore=large)
    shutil.copytree(folder / "run" / "set", KEPT / "set")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        told = play(Path(place))
        tensors = told.pop("tensors")
        told |= {"machine": machine(), "sha256": digest(tensors)}
        EXPECTED.write_text(json.dumps(told, indent=1) + "\n")
        _keep(Path(place))
    print(f"Wrote {EXPECTED} and {KEPT}", file=sys.stderr)
