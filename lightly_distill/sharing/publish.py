"""Publishes a synthetic set: looks for near copies of real images, writes the folder and its card, sends it."""

import copy
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightly_distill.adapters import Repository
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.evaluation.results import read_evaluation
from lightly_distill.runs.run_folder import run_config
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.files import empty_folder
from lightly_distill.synthetic import address, artifact, card, card_frame
from lightly_distill.synthetic.address import Published
from lightly_distill.synthetic.synthetic_set import SyntheticSet

if TYPE_CHECKING:
    from lightly_distill.runs.origin import RealSide

_logger = logging.getLogger(__name__)


def publish(
    synthetic: "SyntheticSet | str | Path",
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    license: str | None = None,
    source_license: str | None = None,
    evaluation: "str | Path | None" = None,
    data: Any = None,
    target: Any = None,
    pairs: "str | Path | None" = None,
    accept_near_copies: bool = False,
    dry_run: "str | Path | None" = None,
) -> Published:
    """Publishes a set as a dataset repository on the Hugging Face Hub, in one commit.

    Nothing is sent twice: after a failure, the same call completes what is missing.

    Args:
        synthetic: The set, its folder, or that of the run that made it, whose configuration names data and target.
        repo_id: `OWNER/NAME`; made if it is not there.
        private: Of a new repository. None leaves it to the user's settings on the Hub.
        revision: Branch to send to, made if it is not there.
        create_pr: Open a pull request.
        commit_message: Default: what is sent.
        license: Of the set: an identifier that the Hub knows, such as `cc-by-4.0`.
        source_license: Of the real images, in words, for the card.
        evaluation: Folder that `evaluate` wrote, whose results go into the card and the set's metrics.
        data: The real images, for the search for near copies. Default: what the run's configuration says.
        target: The target model or its specification. Default: as `data`.
        pairs: PNG to write, of the pairs that are nearest to each other. It shows real images, and is never sent.
        accept_near_copies: Publish all the same if images are near copies of real ones.
        dry_run: Empty folder, gets exactly what would be sent, and nothing is sent.

    Raises:
        UsageError: If an argument is wrong, or images are near copies of real ones and that is not accepted.
        DistillError: If the Hub refuses or fails.
    """
    address.check_repo_id(repo_id)
    if create_pr and revision is not None:
        raise UsageError("A pull request is opened against the main branch: give a revision or create_pr, not both.")
    out = None if dry_run is None else empty_folder(Path(dry_run))
    folder, own = _opened(synthetic)
    metrics = dict(own.metrics)
    if evaluation is not None:
        metrics["transfer"] = read_evaluation(Path(evaluation), own)
    client = address.client()
    if out is None:
        client.check_token()
    before = _before(client, repo_id, revision, dry=out is not None)

    real = _real_side(own, synthetic, data, target)
    if real is not None:
        metrics["near_copies"] = _near_copies(own, real, None if pairs is None else Path(pairs))
        if metrics["near_copies"]["near"] and not (accept_near_copies or out is not None):
            seen = f" {pairs} shows the nearest pairs." if pairs else ""
            raise UsageError(
                f"{metrics['near_copies']['near']} of {len(own)} synthetic images are near copies of real ones.{seen} "
                "Distil longer, or from noise (init=noise); to publish them all the same, say --yes "
                "(accept_near_copies=True)."
            )
    full = copy.copy(own)
    full.metrics, full.provenance = metrics, address.without_folders(own.provenance)
    there = _kept_card(before.card, folder)
    with _folder(out) as place:
        full.save(place)
        size = sum(bytes for name, bytes in _files(place).items() if name != artifact.CARD)
        text = card.text(full, repo_id=repo_id, license=license, source_license=source_license, size=size, before=there)
        (place / artifact.CARD).write_text(text, encoding="utf-8")
        files = _files(place)
        if out is not None:
            return Published(str(out), files, True, metrics.get("near_copies"))
        sent = client.send(
            place,
            repo_id,
            "dataset",
            before,
            private=private,
            revision=revision,
            create_pr=create_pr,
            message=commit_message or f"A synthetic set of {len(own)} images",
        )
    return Published(sent.url, files, sent.changed, metrics.get("near_copies"))


def _opened(synthetic: "SyntheticSet | str | Path") -> tuple[Path | None, SyntheticSet]:
    if isinstance(synthetic, SyntheticSet):
        return None, synthetic
    folder, _ = address.local_folder(synthetic)
    return artifact.find(folder), SyntheticSet.load(folder)


def _files(folder: Path) -> dict[str, int]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _before(client: Any, repo_id: str, revision: str | None, *, dry: bool) -> Any:
    """Returns what stands there; a dry run goes on without the Hub."""
    try:
        return client.look_at(repo_id, "dataset", revision)
    except UsageError:
        raise
    except DistillError as error:
        if not dry:
            raise
        _logger.warning("%s The card is written as for a new repository.", error)
        return Repository(None, (), None)


def _real_side(own: SyntheticSet, named: Any, data: Any, target: Any) -> "RealSide | None":
    """Opens the real images and the target, or says why that cannot be."""
    from lightly_distill.runs import origin  # here: it brings what only measures

    known = {} if isinstance(named, SyntheticSet) else run_config(Path(named))
    there = {
        "data": data is not None or "data" in known,
        "target": target is not None or origin.is_only_weights(known.get("target")),
    }
    missing = " and ".join(name for name, is_there in there.items() if not is_there)
    try:
        if missing:
            raise UsageError(f"it is not known which they are; give {missing}.")
        real = origin.real_side(named, data, target, own.images.shape[-1], resolve_device("auto"))
        origin.check_origin(own, real)
    except DistillError as error:
        if data is not None or target is not None:
            raise
        _logger.warning("Not compared with the real images, to look for near copies: %s", error)
        return None
    return real


def _near_copies(own: SyntheticSet, real: "RealSide", pairs: Path | None) -> dict[str, Any]:
    from lightly_distill.sharing import near_copies

    found = near_copies.find_near_copies(own, real)
    if pairs is not None:
        near_copies.draw_pairs(found, own, real, pairs)
    facts = found.facts()
    tell = _logger.warning if facts["near"] else _logger.info
    tell("%s%s", card.near_copies_sentence(facts), f" Nearest pairs: {pairs}" if pairs else "")
    return facts


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    workspace = Path(tempfile.mkdtemp(prefix="lightly-distill-"))
    try:
        yield workspace / "set"
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _kept_card(there: str | None, folder: Path | None) -> str | None:
    """Returns the card whose own text is kept: that on the Hub, or before there is one that in the folder."""
    local = None if folder is None else folder / artifact.CARD
    mine = local.read_text(encoding="utf-8") if local is not None and local.is_file() else None
    if there and mine and card_frame.own_text(mine) not in card_frame.own_text(there):
        _logger.warning("%s has text of yours; that of the card on the Hub is kept instead: edit it there.", local)
    return there or mine
