"""Publishes a synthetic set: looks for near copies of real images, writes the folder and its card, sends it."""

import copy
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from lightly_distill.adapters import HubAdapter, Repository
from lightly_distill.errors import DistillError, UsageError, did_you_mean
from lightly_distill.evaluation import findings
from lightly_distill.evaluation.results import read_evaluation
from lightly_distill.runtime.console import aloud
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.settings import choose
from lightly_distill.runtime.terms import on_own_terms
from lightly_distill.synthetic import address, artifact, card, card_frame, set_facts
from lightly_distill.synthetic.address import Published, PublishKeywords, PublishOptions
from lightly_distill.synthetic.synthetic_set import SyntheticSet

if TYPE_CHECKING:
    from lightly_distill.runs.origin import RealSide

# Identifiers that the Hub takes in the header of a card, the usual ones:
# https://huggingface.co/docs/hub/repositories-licenses
_LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    bsl-1.0 c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl ncsa odbl odc-by
    ofl-1.1 openrail osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""

_logger = logging.getLogger(__name__)


@on_own_terms()
@aloud()
def publish(
    synthetic: "SyntheticSet | str | Path",
    repo_id: str,
    options: PublishOptions | None = None,
    **keywords: Unpack[PublishKeywords],
) -> Published:
    """Publishes a set as a dataset repository on the Hugging Face Hub, in one commit.

    Nothing is sent twice: after a failure, the same call completes what is missing.

    Args:
        synthetic: The set, its folder, or that of the run that made it, whose configuration names data and target.
        repo_id: `OWNER/NAME`, or `HUB:OWNER/NAME` of another installed hub; made if it is not there.
        options: All options at once, instead of keywords.
        keywords: Fields of `PublishOptions`, such as `license="cc-by-4.0"`.

    Raises:
        UsageError: If an argument is wrong, or images are near copies of real ones and that is not accepted.
        DistillError: If the Hub refuses or fails.
    """
    chosen = choose(options, PublishOptions(), keywords)
    _check_license(chosen.license)
    client, repository = address.find_hub(repo_id)
    out = None if chosen.dry_run is None else Path(chosen.dry_run)
    if out is not None:
        artifact.refuse_occupied(out, overwrite=True)
    folder, own = _opened(synthetic)
    if out is not None and folder is not None and out.resolve() == folder.resolve():
        raise UsageError(f"A dry run would be written over the set itself, {folder}: give another folder.")
    if out is not None:
        _refuse_all_but_dry_run(out, repo_id)
    metrics = dict(own.metrics)
    if chosen.evaluation is not None:
        metrics["transfer"] = _without_folders(read_evaluation(Path(chosen.evaluation), own))
        metrics["verdict"] = findings.verdict([result["arms"] for result in metrics["transfer"]])
    if out is None:
        client.check_token()
        before = client.look_at(repository, "dataset", chosen.revision)

    real = _real_side(own, synthetic, chosen)
    if real is not None:
        metrics["near_copies"] = _near_copies(own, real, chosen)
    if out is not None:  # last, as it is to say what would be sent, and not whether it could
        before = _before(client, repository, chosen.revision)
    full = copy.copy(own)
    full.metrics, full.provenance = metrics, address.without_folders(own.provenance)
    there = _kept_card(before.card, folder)
    with _folder(out) as place:
        files = _written(full, place, repo_id, chosen, there)
        if out is not None:
            return Published(str(out), files, True, metrics.get("near_copies"))
        sent = client.send(
            place,
            repository,
            "dataset",
            before,
            private=chosen.private,
            revision=chosen.revision,
            create_pr=chosen.create_pr,
            message=chosen.commit_message or f"A synthetic set of {len(own)} images",
        )
    return Published(sent.url, files, sent.changed, metrics.get("near_copies"))


def _check_license(name: str | None) -> None:
    """Warns of a license that is probably mistyped: the Hub, which has the last word, refuses it after long work."""
    known = _LICENSES.split()
    if name is not None and name not in known:
        _logger.warning(
            "The Hugging Face Hub may refuse '%s', which is no license that we know there.%s 'other' stands for one of "
            "your own.",
            name,
            did_you_mean(name, known, list_up_to=0),
        )


def _opened(synthetic: "SyntheticSet | str | Path") -> tuple[Path | None, SyntheticSet]:
    if isinstance(synthetic, SyntheticSet):
        return None, synthetic
    folder, _ = address.local_folder(synthetic)
    return artifact.find(folder), SyntheticSet.load(folder)


def _refuse_all_but_dry_run(out: Path, repo_id: str) -> None:
    """Refuses to write a dry run over anything but an earlier one: its card loads the set by its name on the Hub."""
    card_there = out / set_facts.CARD
    told = card_there.read_text(encoding="utf-8", errors="replace") if card_there.is_file() else ""
    of_dry_run = f'SyntheticSet.load("{repo_id}")' in card_frame.our_text(told)
    others = [name for name in _files(out) if not Path(name).name.startswith(".")]  # dots begin what systems leave
    if others and not of_dry_run:
        raise UsageError(f"{out} holds what no dry run for {repo_id} wrote: choose another folder.")


def _without_folders(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns results for others to see: of the absolute path of a task, the last part is left, numbered if twice."""
    arms = [arm for result in results for arm in result["arms"].values()]
    tasks = dict.fromkeys(measure.rpartition("/")[0] for arm in arms for measure in arm)
    last = {task: address.without_folders({"source": {"name": task}})["source"]["name"] for task in tasks}
    names: dict[str, str] = {}
    for task, name in sorted(last.items(), key=lambda pair: pair[0] != pair[1]):  # first those that stay as they are
        spare = (name, *(f"{name} {number}" for number in range(2, len(last) + 1)))
        names[task] = next(each for each in spare if each not in names.values())

    def public(measure: str) -> str:
        task, _, probe = measure.rpartition("/")
        return f"{names[task]}/{probe}"

    return [
        {
            **result,
            "arms": {name: {public(key): seen for key, seen in arm.items()} for name, arm in result["arms"].items()},
        }
        for result in results
    ]


def _written(
    synthetic: SyntheticSet, place: Path, repo_id: str, options: PublishOptions, card_there: str | None
) -> dict[str, int]:
    """Writes the set and its card as they are sent, over what a dry run wrote before; returns bytes of each file."""
    synthetic.save(place, overwrite=True)
    text = card.text(
        synthetic,
        repo_id=repo_id,
        license=options.license,
        source_license=options.source_license,
        size=set_facts.bytes_on_disk(place),
        before=card_there,
    )
    (place / set_facts.CARD).write_text(text, encoding="utf-8", errors="surrogateescape")
    return _files(place)


def _files(folder: Path) -> dict[str, int]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _before(client: HubAdapter, repo_id: str, revision: str | None) -> Repository:
    """Returns what stands there, for a dry run, which goes on without the Hub."""
    try:
        return client.look_at(repo_id, "dataset", revision)
    except UsageError:
        raise
    except DistillError:
        _logger.info("Without the Hub, the card is written as for a new repository.")
        return Repository(None, (), None)


def _real_side(own: SyntheticSet, named: Any, options: PublishOptions) -> "RealSide | None":
    """Opens the real images and the target, or says why that cannot be."""
    from lightly_distill.runs import origin  # here: it brings what only measures

    data, target, representations = options.data, options.target, options.representations
    missing = origin.missing_origin(named, data, target)
    try:
        if missing:
            parts = missing.split(" and ")
            what = " and ".join({"data": "its real images", "target": "its target model"}[part] for part in parts)
            verb, give = "is" if parts == ["target"] else "are", " and ".join(f"--{part}" for part in parts)
            raise UsageError(f"No run of this set says what {what} {verb}: give {give} ({missing} in Python).")
        device = resolve_device("auto")
        real = origin.real_side(named, data, target, own, device, representations=representations)
        origin.check_origin(own, real)
    except DistillError as error:
        if any(given is not None for given in (data, target, representations)):
            raise
        _logger.warning("Not compared with the real images, to look for near copies: %s", error)
        return None
    return real


def _near_copies(own: SyntheticSet, real: "RealSide", options: PublishOptions) -> dict[str, Any]:
    """Looks for near copies; refuses them where they are neither accepted nor only written to a folder."""
    from lightly_distill.sharing import near_copies

    found = near_copies.find_near_copies(own, real)
    pairs = options.pairs
    if pairs is not None:
        try:
            near_copies.draw_pairs(found, own, real, Path(pairs))
        except DistillError as error:  # of the place; the look itself, which is the long work, has its result
            _logger.warning("The picture of the nearest pairs is left out: %s", error)
            pairs = None
    facts = found.facts()
    log = _logger.warning if facts["near"] else _logger.info
    log("%s%s", card.near_copies_sentence(facts), f" Nearest pairs: {pairs}" if pairs else "")
    if facts["near"] and not (options.accept_near_copies or options.dry_run is not None):
        seen = f" {pairs} shows the nearest pairs." if pairs else ""
        raise UsageError(
            f"{facts['near']} of {len(own)} synthetic images are near copies of real ones.{seen} Distil longer, or "
            "from noise (init=noise); to publish them all the same, say --yes (accept_near_copies=True)."
        )
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
    local = None if folder is None else folder / set_facts.CARD
    mine = None
    if local is not None and local.is_file():
        mine = local.read_text(encoding="utf-8", errors="surrogateescape")
    if there and mine and card_frame.own_text(mine) not in card_frame.own_text(there):
        _logger.warning("%s has text of yours; that of the card on the Hub is kept instead: edit it there.", local)
    kept = there or mine
    card_frame.take_apart(kept or "")  # one that cannot be kept is refused before anything is written
    return kept
