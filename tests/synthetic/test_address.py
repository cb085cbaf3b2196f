"""Names of sets on hubs; what the Hugging Face Hub does with them is in integrations/huggingface/test_hub.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightly_distill import SyntheticSet, UsageError, adapters
from lightly_distill.adapters import Repository, Sent
from lightly_distill.sharing import publish as sharing
from lightly_distill.synthetic import address
from synthetic_sets import make_set, same_bits


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A hub of somebody else's, `shelf`, that keeps what it is sent in folders."""
    kept: dict[str, Path] = {}

    def send(folder: Path, repo_id: str, kind: str, before: Repository, **options: Any) -> Sent:
        kept[repo_id] = folder.rename(tmp_path / repo_id.replace("/", "-"))
        return Sent(f"https://shelf/{repo_id}", "c0ffee", True)

    hub = SimpleNamespace(
        check_token=lambda: None,
        look_at=lambda repo_id, kind, revision: Repository(None, (), None),
        send=send,
        fetch_set=lambda repo_id, revision: (kept[repo_id], revision or "c0ffee"),
        publish=sharing.publish,
    )
    available, get = adapters.available, adapters.get
    monkeypatch.setattr(adapters, "available", lambda group: {"shelf": hub} if group == "hubs" else available(group))
    monkeypatch.setattr(
        adapters, "get", lambda group, name: hub if (group, name) == ("hubs", "shelf") else get(group, name)
    )
    return kept


def test_a_set_goes_to_the_hub_that_its_name_begins_with_and_comes_back(shelf: dict[str, Path]) -> None:
    ours = make_set()
    published = ours.push_to_hub("shelf:me/photos")
    assert published.url == "https://shelf/me/photos" and list(shelf) == ["me/photos"]
    assert 'SyntheticSet.load("shelf:me/photos")' in (shelf["me/photos"] / "README.md").read_text()
    again = SyntheticSet.load("shelf:me/photos@v1")
    assert same_bits(again.images, ours.images) and again.origin == "shelf:me/photos@v1"


@pytest.mark.parametrize("name", ["me", "shelf:me", "other:me/photos", "me/photos/more"])
def test_what_is_no_repository_is_refused(shelf: dict[str, Path], name: str) -> None:
    with pytest.raises(UsageError, match=f"is OWNER/NAME, such as me/cifar10-1k; got '{name}'"):
        address.find_hub(name)
