"""`lightly-distill publish`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightly_distill.cli.options import SOURCE_HELP, TARGET_HELP, given_target, representations_option, target_options
from lightly_distill.errors import UsageError
from lightly_distill.runtime.words import size_text
from lightly_distill.sharing.publish import publish
from lightly_distill.synthetic import artifact, set_facts
from lightly_distill.synthetic.address import PublishOptions, find_hub

ABOUT = (
    "Publishes a synthetic set as a dataset on the Hugging Face Hub, after a look for near copies of real images. "
    "After a failure, the same command completes it."
)


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("set", type=str, metavar="DIR", help="Synthetic set, or the run that made it.")
    parser.add_argument("repo_id", type=str, metavar="REPO_ID", help="OWNER/NAME on the Hub; made if it is not there.")
    parser.add_argument("--private", action="store_true", help="Of a new repository: only you may see it.")
    parser.add_argument("--license", type=str | None, default=None, metavar="ID", help="Such as cc-by-4.0.")
    parser.add_argument(
        "--source-license", type=str | None, default=None, metavar="TEXT", help="Of the real images, for the card."
    )
    parser.add_argument(
        "--evaluation", type=Path | None, default=None, metavar="DIR", help="What evaluate wrote; goes into the card."
    )
    parser.add_argument("--revision", type=str | None, default=None, metavar="NAME", help="Branch; made if needed.")
    parser.add_argument("--pull-request", action="store_true", help="Open a pull request.")
    parser.add_argument("--message", type=str | None, default=None, metavar="TEXT", help="Of the commit.")
    parser.add_argument(
        "--dry-run", type=Path | None, default=None, metavar="DIR", help="Write what would be sent there; send nothing."
    )
    parser.add_argument("--yes", action="store_true", help="Publish even if images are near copies of real ones.")
    parser.add_argument(
        "--data", type=str | None, default=None, metavar="SRC", help=f"Default: that of the set's run. {SOURCE_HELP}"
    )
    parser.add_argument(
        "--target", type=str | None, default=None, metavar="SPEC", help=f"Default: that of the set's run. {TARGET_HELP}"
    )
    target_options(parser)
    representations_option(parser, "those of the set's run, or they are computed")


def run(options: Namespace) -> None:
    """Runs the command."""
    find_hub(options.repo_id)  # before the target, which may be a download
    if not Path(options.set).exists():
        raise UsageError(
            f"There is no folder {options.set}: what is published is the folder of a set, or of the run that made it."
        )
    pairs = _pairs(Path(options.set))
    chosen = PublishOptions(
        private=options.private or None,
        revision=options.revision,
        create_pr=options.pull_request,
        commit_message=options.message,
        license=options.license,
        source_license=options.source_license,
        evaluation=options.evaluation,
        data=options.data,
        target=given_target(options),
        representations=options.representations,
        pairs=pairs,
        accept_near_copies=options.yes,
        dry_run=options.dry_run,
    )
    published = publish(options.set, options.repo_id, chosen)
    for name, size in published.files.items():
        print(f"{size:>12} bytes  {name}")
    fetched = size_text(sum(size for name, size in published.files.items() if name != set_facts.CARD))
    total = f"{fetched} besides the card"
    if options.dry_run is not None:
        print(f"{total}: written to {published.url}; nothing was sent.")
        near = (published.near_copies or {}).get("near", 0)
        if near and not options.yes:
            print(f"To send it, say --yes: {near} of its images are near copies of real ones.")
    elif not published.changed:
        print(f"{total}: all of it was there already: {published.url}")
    else:
        print(f'Sent {total}: {published.url}\nTo use it: SyntheticSet.load("{options.repo_id}")')


def _pairs(folder: Path) -> Path:
    """Returns where the picture of the nearest pairs goes: to the run's own, or beside the set, never into it."""
    found = artifact.find(folder)
    pictures = found.resolve().parent / "pictures"
    return pictures / "closest_pairs.png" if pictures.is_dir() else found.with_name(f"{found.name}-closest-pairs.png")
