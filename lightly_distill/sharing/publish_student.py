"""Publishes a student as a model on the Hugging Face Hub, with a card from what was recorded when it was trained."""

import json
import shutil
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lightly_distill.errors import UsageError
from lightly_distill.models.students import find_adapter
from lightly_distill.runtime import templates
from lightly_distill.runtime.words import one_line
from lightly_distill.synthetic import address, card_frame, set_facts

WEIGHTS = "model.safetensors"
TAGS = ("lightly-distill", "self-supervised-learning", "timm")


def publish_student(folder: "str | Path", repo_id: str, *, private: bool | None = None) -> str:
    """Publishes a student that `pretrain` wrote as a model on the Hugging Face Hub, in one commit, with its card.

    `timm.create_model("hf_hub:OWNER/NAME", pretrained=True)` loads it. Nothing of it is pickle.

    Args:
        folder: What `pretrain` wrote.
        repo_id: `OWNER/NAME`; made if it is not there.
        private: Of a new repository. None leaves it to the user's settings on the Hub.

    Returns:
        The URL.

    Raises:
        UsageError: If the folder holds no student or half of one, or the repository is of something else.
        DistillError: If the Hub refuses or fails.
    """
    client, repository = address.find_hub(repo_id)
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        facts = config["lightly_distill"]
        facts["synthetic_set"] = address.without_folders(facts["synthetic_set"])
        adapter, name = find_adapter(facts["student"])
        load = adapter.how_to_load_from_hub(name, repository)
        card_text(facts, load, None)  # what it lacks is told now
        with safe_open(folder / WEIGHTS, framework="pt"):  # there, and as long as its head says
            pass
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise UsageError(f"{folder} holds no student of `pretrain`: {type(error).__name__}: {error}") from error
    client.check_token()
    before = client.look_at(repository, "model", None)
    workspace = Path(tempfile.mkdtemp(prefix="lightly-distill-"))
    try:
        (workspace / "config.json").write_text(json.dumps(config, indent=2))
        shutil.copyfile(folder / WEIGHTS, workspace / WEIGHTS)
        (workspace / set_facts.CARD).write_text(card_text(facts, load, before.card), encoding="utf-8")
        message = f"{facts['student']}, pre-trained on a synthetic set"
        sent = client.send(workspace, repository, "model", before, private=private, message=message)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return str(sent.url)


def card_text(facts: dict[str, Any], load: str, before: str | None) -> str:
    """Returns the card.

    Args:
        facts: What `pretrain` recorded.
        load: Lines of Python that load the student.
        before: The card that there is, whose own text and header are kept.

    Raises:
        DistillError: If the header of the card before is not YAML.
    """
    header, around = card_frame.take_apart(before or "")
    repo = str(facts.get("set", "")).partition("@")[0]
    header = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        **({"datasets": [repo]} if repo else {}),
        **header,
        "tags": card_frame.merged_tags(TAGS, header),
    }
    known = facts["synthetic_set"]
    source, target = known.get("source"), known.get("target")
    rows = {
        "synthetic set": facts.get("set"),
        "distilled from": source.get("name") if isinstance(source, dict) else source,
        "target": target.get("name") if isinstance(target, dict) else target,
        "pre-training": ", ".join(f"{name} {value}" for name, value in facts["pretraining"].items()),
    }
    body = templates.fill(
        "sharing/templates/student_card.md.j2",
        student=_cell(facts["student"]),
        repo=repo,
        load=textwrap.dedent(load),
        size="x".join(map(str, facts["input_size"][1:])),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        facts={name: _cell(value) for name, value in rows.items() if value},
    )
    return card_frame.put_together(header, around, body)


def _cell(value: Any) -> str:
    # no cell border, whatever the name of a source is
    return one_line(str(value)).replace("|", "/")
