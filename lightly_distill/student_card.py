"""The model card of a student on the Hugging Face Hub, written from what was recorded when it was trained."""

import textwrap
from typing import Any

import yaml

from lightly_distill.card import BEGIN, END, taken_apart
from lightly_distill.page import one_line

_BODY = """\
{begin}
# {student}, pre-trained on a synthetic set

A backbone without a head, pre-trained on {set}, images that were distilled from a self-supervised model with
[KRR-ST](https://arxiv.org/abs/2310.06511), so that a small network learns from them in minutes. To be fine-tuned, or
used for its features.

```python
{load}
```

It takes images of {size} pixels, normalised with mean {mean} and std {std}.

| | |
|---|---|
{rows}

{end}
"""


def text(facts: dict[str, Any], load: str, before: str | None) -> str:
    """Returns the card.

    Args:
        facts: What `pretrain` recorded.
        load: Lines of Python that load the student.
        before: The card that there is, whose own text and header are kept.

    Raises:
        DistillError: If the header of the card before is not YAML.
    """
    header, around = taken_apart(before or "")
    repo = str(facts.get("set", "")).partition("@")[0]
    tags = header.get("tags")
    ours = {"lightly-distill", "timm", "self-supervised-learning"}
    header = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        **({"datasets": [repo]} if repo else {}),
        **header,
        "tags": [*sorted(ours), *(tag for tag in tags if tag not in ours)] if isinstance(tags, list) else sorted(ours),
    }
    known = facts["synthetic_set"]
    source, target = known.get("source"), known.get("target")
    rows = {
        "synthetic set": facts.get("set"),
        "distilled from": source.get("name") if isinstance(source, dict) else source,
        "target": target.get("name") if isinstance(target, dict) else target,
        "pre-training": ", ".join(f"{name} {value}" for name, value in facts["pretraining"].items()),
    }
    body = _BODY.format(
        begin=BEGIN,
        end=END,
        student=_cell(facts["student"]),
        set=f"[{repo}](https://huggingface.co/datasets/{repo})" if repo else "a synthetic set",
        load=textwrap.dedent(load),
        size="x".join(map(str, facts["input_size"][1:])),
        mean=facts["mean"],
        std=facts["std"],
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n{around[0]}{body}{around[1]}"


def _cell(value: Any) -> str:
    # no cell border, whatever the name of a source is
    return one_line(str(value)).replace("|", "/")
