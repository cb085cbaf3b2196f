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
    """Returns what is recorded of a set's origin, each as one line for people; what is not recorded is left out."""
    known = synthetic.provenance
    source, target, config, losses = (_part(known, name) for name in ("source", "target", "config", "heldout_loss"))
    lines = {
        "source": _join(source.get("name"), _unit(source.get("images"), "images"), _hash(source.get("fingerprint"))),
        "target": _join(target.get("name"), _encoder(target), _hash(target.get("sha256"))),
        "student": _join(config.get("student")),
        "outer steps": _join(known.get("steps")),
        "outer loss, held-out images": _join(
            _unit(_number(losses.get("initial")), "at the start"), _unit(_number(losses.get("final")), "at the end")
        ),
        "seed": _join(config.get("seed")),
        "time": _join(_unit(_number(known.get("seconds")), "s"), known.get("device")),
        "peak memory": _join(_unit(_number(known.get("peak_memory_bytes"), 2**30), "GiB")),
        "versions": _join(*(f"{name} {number}" for name, number in _part(known, "versions").items())),
    }
    return {name: value for name, value in lines.items() if value}


def _encoder(target: dict[str, Any]) -> str | None:
    encoder = target.get("encoder")
    if encoder in (None, target.get("name")):
        return target.get("reason") or None
    return f"{encoder} ({target['reason']})" if target.get("reason") else str(encoder)


def _part(known: dict[str, Any], name: str) -> dict[str, Any]:
    part = known.get(name)
    return part if isinstance(part, dict) else {"name": part}


def _join(*parts: Any) -> str:
    # one line, and no cell border, whatever the name of a source is
    return " ".join(", ".join(str(part) for part in parts if part is not None).replace("|", "/").split())


def _unit(value: Any, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def _number(value: Any, scale: float = 1.0) -> str | None:
    return f"{value / scale:.4g}" if isinstance(value, (int, float)) else None


def _hash(value: Any) -> str | None:
    return None if value is None else f"hash {str(value)[:12]}"


def _short(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
