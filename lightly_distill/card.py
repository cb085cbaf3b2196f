"""The dataset card of a synthetic set, written from its recorded facts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightly_distill.synthetic import SyntheticSet

_HEADER = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
tags:
- lightly-distill
- dataset-distillation
- self-supervised-learning
---
"""


def text(synthetic: "SyntheticSet") -> str:
    """Returns the card, Markdown with a header that the Hub and `datasets` understand."""
    count, _, height, width = synthetic.images.shape
    settings = "\n".join(f"| {name} | {value} |" for name, value in facts(synthetic).items())
    return f"""{_HEADER}
# A synthetic set of {count} images

{count} learned images of {width}x{height} pixels, each with a learned representation of {synthetic.dim} numbers.
Distilled from unlabelled images and a self-supervised model with
[KRR-ST](https://arxiv.org/abs/2310.06511), so that pre-training a small backbone on them takes minutes.

![The images](preview.png)

```python
from lightly_distill import SyntheticSet, pretrain
synthetic = SyntheticSet.load("path/to/this/folder")
backbone = pretrain("mobilenetv3_small_100", synthetic)  # a timm model, ready to fine-tune
```

The column `pixels` holds the images exactly (float32, normalised, beyond what a screen can show); `image` is for
eyes. Images for a backbone trained on this set are normalised with mean {_short(synthetic.mean)} and
std {_short(synthetic.std)}.

| | |
|---|---|
{settings}

## Citation

Lee et al., *Self-Supervised Dataset Distillation for Transfer Learning*, ICLR 2024, arXiv:2310.06511.
"""


def facts(synthetic: "SyntheticSet") -> dict[str, str]:
    """Returns what is recorded of a set's origin, each as one line for people."""
    known = synthetic.provenance
    source, target, config = (known.get(part, {}) for part in ("source", "target", "config"))
    losses = known.get("heldout_loss", {})
    lines: dict[str, Any] = {
        "source": source and f"{source['name']}, {source['images']} images, fingerprint {source['fingerprint'][:12]}",
        "target": target and f"{target['name']}, sha256 {target['sha256'][:12]}",
        "student": config.get("student"),
        "outer steps": known.get("steps"),
        "outer loss, held-out images": losses.get("final")
        and f"{losses['initial']:.4g} at the start, {losses['final']:.4g} at the end",
        "seed": config.get("seed"),
        "time": known.get("seconds") and f"{known['seconds']:.0f} s on {known['device']}",
        "peak memory": known.get("peak_memory_bytes") and f"{known['peak_memory_bytes'] / 2**30:.1f} GiB",
        "versions": ", ".join(f"{name} {number}" for name, number in known.get("versions", {}).items()),
    }
    return {name: str(value) for name, value in lines.items() if value not in (None, "", {})}


def _short(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
