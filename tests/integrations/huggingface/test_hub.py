"""The real client against the Hub of `local_hub.py`."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import synthetic_sets
import tiny
from hub_client import Client
from lightly_distill import SyntheticSet
from lightly_distill.models.projection import Projection
from lightly_distill.runtime.seeding import generator
from lightly_distill.synthetic import set_facts
from local_hub import LocalHub, local_hub
from synthetic_sets import MEAN, STD, make_set, same_bits

FILES = {"README.md", set_facts.DATA, set_facts.FACTS, "preview.png"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with local_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(running: LocalHub) -> Iterator[LocalHub]:
    yield running
    running.heal()


@pytest.fixture(scope="module")
def client(running: LocalHub, home: Path) -> Iterator[Client]:
    client = Client(running, home)
    yield client
    client.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_set().save(tmp_path / "set")


def published(hub: LocalHub, repo: str, revision: str = "main", kind: str = "datasets") -> dict[str, Any]:
    """The files of a commit."""
    found = hub.repo(repo, kind)
    assert found is not None
    files: dict[str, Any] = found["commits"][found["refs"].get(revision, revision)]["files"]
    return files


def commits(hub: LocalHub, repo: str) -> list[str]:
    found = hub.repo(repo)
    return [commit["message"] for commit in found["commits"].values()] if found else []


def head(hub: LocalHub, repo: str) -> str:
    found = hub.repo(repo)
    assert found is not None
    return str(found["refs"]["main"])


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("lightly-distill: error: "), text
    return lines[0]


LOADED_WITHOUT_US = """
import sys, torch

class Hidden:  # an editable install puts itself on the path
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("lightly_distill"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
try:
    import lightly_distill
    raise SystemExit("our package is there")
except ModuleNotFoundError:
    pass
from datasets import load_dataset
repo, folder, truth = sys.argv[1:]
images, representations = torch.load(truth, weights_only=True)
same = lambda a, b: torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))
for place in (repo, folder):
    rows = load_dataset(place, split="train")
    assert rows.column_names == ["image", "pixels", "representation", "source_index"], rows
    assert rows[0]["image"].size == (8, 8)
    table = rows.remove_columns("image").with_format("torch")[:]
    assert same(table["pixels"], images) and same(table["representation"], representations)
    columns = ["pixels", "representation"]
    stream = list(load_dataset(place, split="train", streaming=True, columns=columns).with_format("torch"))
    assert same(torch.stack([row["pixels"] for row in stream]), images)
    assert same(torch.stack([row["representation"] for row in stream]), representations)
assert not any(name.startswith("lightly_distill") for name in sys.modules)
print("loaded both")
"""


def test_a_published_set_loads_with_plain_datasets_and_so_does_a_dry_run(
    hub: LocalHub, client: Client, home: Path, folder: Path, tmp_path: Path
) -> None:
    told = client.cli("publish", folder, "me/plain", "--dry-run", tmp_path / "dry")
    assert told.status == 0, told.err
    assert "nothing was sent" in told.out and hub.repo("me/plain") is None
    assert not [line for line in hub.log() if line.startswith(("POST", "PUT")) and "me/plain" in line]
    told = client.cli("publish", folder, "me/plain")
    assert told.status == 0, told.err
    assert f"{hub.url}/datasets/me/plain" in told.out and "Not compared with the real images" in told.err
    # one commit, of exactly what the dry run wrote
    assert commits(hub, "me/plain") == ["initial commit", "A synthetic set of 6 images"]
    assert set(published(hub, "me/plain")) == FILES | {".gitattributes"}
    for name in FILES:
        assert hub.content("me/plain", name) == (tmp_path / "dry" / name).read_bytes(), name
        assert f"{len(hub.content('me/plain', name)):>12} bytes  {name}" in told.out
    ours = make_set()
    torch.save((ours.images, ours.representations), tmp_path / "truth.pt")
    # its own cache; offline but for the Hub, whose viewer it would look for
    arguments = ["me/plain", str(tmp_path / "dry"), str(tmp_path / "truth.pt")]
    result = subprocess.run(
        [sys.executable, "-I", "-c", LOADED_WITHOUT_US, *arguments],
        env=hub.environment(tmp_path / "hf"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "loaded both\n", result.stderr


def test_ours_comes_back_bit_for_bit_is_inspected_and_trained_on(
    hub: LocalHub, client: Client, folder: Path, tmp_path: Path
) -> None:
    assert client.cli("publish", folder, "me/exact").status == 0
    code = """
from lightly_distill import SyntheticSet
s = SyntheticSet.load("me/exact")
print(s.origin)
s.save(out)
"""
    told = client.python(code, token=None, out=str(tmp_path / "back"))
    assert told.out.strip() == f"me/exact@{head(hub, 'me/exact')}", told.err
    ours, back = make_set(), SyntheticSet.load(tmp_path / "back")
    assert same_bits(back.images, ours.images) and same_bits(back.representations, ours.representations)
    assert torch.equal(back.source_index, ours.source_index) and back.provenance == ours.provenance
    told = client.cli("inspect", "me/exact", token=None)
    assert told.status == 0 and "6 of 3x8x8" in told.out and f"me/exact@{head(hub, 'me/exact')}" in told.out
    student = ["--student", "convnet_4_4", "--steps", "1", "--out", tmp_path / "student"]
    assert client.cli("pretrain", "--set", "me/exact", *student, token=None).status == 0
    assert json.loads((tmp_path / "student" / "config.json").read_text())["lightly_distill"]["set"].startswith(
        "me/exact@"
    )


def test_the_projection_of_a_set_travels_with_it_and_goes_with_it(
    hub: LocalHub, client: Client, tmp_path: Path
) -> None:
    synthetic, g = make_set(), generator(0, "projection")
    basis = torch.linalg.qr(torch.randn(9, 5, generator=g)).Q
    synthetic.projection = Projection(torch.randn(9, generator=g), basis, torch.rand(5) + 0.5, torch.tensor(0.75))
    told = client.cli("publish", synthetic.save(tmp_path / "projected"), "me/projected")
    assert told.status == 0, told.err
    assert set(published(hub, "me/projected")) == FILES | {".gitattributes", set_facts.PROJECTION}
    code = """
from lightly_distill import SyntheticSet
synthetic = SyntheticSet.load("me/projected")
print(synthetic.original_representations().shape, float(synthetic.projection.variance))
"""
    told = client.python(code)
    assert told.out == "torch.Size([6, 9]) 0.75\n", told.err
    assert client.cli("publish", make_set().save(tmp_path / "plain"), "me/projected").status == 0
    assert set(published(hub, "me/projected")) == FILES | {".gitattributes"}


def test_publishing_again_sends_what_changed_and_the_old_revision_stays(
    hub: LocalHub, client: Client, folder: Path, tmp_path: Path
) -> None:
    assert client.cli("publish", folder, "me/again").status == 0
    first = head(hub, "me/again")
    told = client.cli("publish", folder, "me/again")
    assert told.status == 0 and "all of it was there already" in told.out
    assert len(commits(hub, "me/again")) == 2 and head(hub, "me/again") == first

    changed = make_set()
    changed.images[1] += 1
    changed.save(folder, overwrite=True)
    told = client.cli("publish", folder, "me/again", "--message", "Brighter", "--license", "cc-by-4.0")
    assert told.status == 0 and commits(hub, "me/again")[-1] == "Brighter"
    code = """
from lightly_distill import SyntheticSet
for place, revision in (("me/again", None), ("me/again", first), (f"me/again@{first}", None)):
    print(float(SyntheticSet.load(place, revision=revision).images[1, 0, 0, 0]))
try:
    SyntheticSet.load(folder, revision=first)
except Exception as error:
    print(error)
"""
    told = client.python(code, first=first, folder=str(folder))
    new, *old, refused = told.out.splitlines()
    value = float(make_set().images[1, 0, 0, 0])
    assert float(new) == pytest.approx(value + 1) and all(float(line) == value for line in old)
    assert "A revision is of a set on the Hugging Face Hub" in refused


def test_what_the_user_wrote_around_our_section_stays(hub: LocalHub, client: Client, folder: Path) -> None:
    assert client.cli("publish", folder, "me/edited", "--license", "mit").status == 0
    code = """
from huggingface_hub import HfApi
from lightly_distill.synthetic import card
text = card_before.replace("---\\n<!--", "contact: me\\n---\\n# My own heading\\n\\n<!--", 1) + "\\nMy own ending.\\n"
text = text.replace("- lightly-distill", "- birds\\n- lightly-distill", 1).replace("learned images of", "CHANGED")
HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="me/edited", repo_type="dataset")
"""
    before = hub.content("me/edited", "README.md").decode()
    assert client.python(code, card_before=before).status == 0
    edited = hub.content("me/edited", "README.md").decode()
    assert "CHANGED" in edited and "My own heading" in edited
    for _ in range(2):
        told = client.cli("publish", folder, "me/edited", "--source-license", "CIFAR's own terms")
        assert told.status == 0, told.err
        card = hub.content("me/edited", "README.md").decode()
        header = yaml.safe_load(card.split("---")[1])
        assert header["license"] == "mit" and header["contact"] == "me" and header["tags"][-1] == "birds"
        assert card.index("# My own heading") < card.index("# A synthetic set") < card.index("My own ending.")
        assert "CHANGED" not in card and card.count("# A synthetic set of 6 images") == 1
        assert 'SyntheticSet.load("me/edited")' in card and "CIFAR's own terms" in card
    assert "all of it was there already" in told.out


def test_text_in_the_folder_goes_along_until_there_is_a_card_on_the_hub(
    hub: LocalHub, client: Client, folder: Path
) -> None:
    local = folder / "README.md"
    local.write_text(local.read_text() + "Mine, here.\n")
    assert client.cli("publish", folder, "me/local").status == 0
    assert hub.content("me/local", "README.md").decode().endswith("Mine, here.\n")
    told = client.cli("publish", folder, "me/local")
    assert "all of it was there already" in told.out and "text of yours" not in told.err
    local.write_text(local.read_text() + "More.\n")
    told = client.cli("publish", folder, "me/local")
    assert f"{local} has text of yours; that of the card on the Hub is kept instead: edit it there." in told.err


def test_a_table_that_others_pushed_in_parts_is_replaced(hub: LocalHub, client: Client, folder: Path) -> None:
    assert client.cli("publish", folder, "me/parts").status == 0
    replace(hub, "me/parts", "data/train-00000-of-00002.parquet", b"PAR1")
    assert client.cli("publish", folder, "me/parts", "--license", "mit").status == 0
    assert set(published(hub, "me/parts")) == FILES | {".gitattributes"}


def test_a_commit_in_between_is_not_overwritten_and_a_hub_that_is_silent_not_waited_for(
    hub: LocalHub, client: Client, folder: Path
) -> None:
    assert client.cli("publish", folder, "me/race").status == 0
    code = """
from pathlib import Path
from huggingface_hub import HfApi
from lightly_distill_integrations.huggingface import hub
before = hub.look_at("me/race", "dataset", None)
HfApi().upload_file(path_or_fileobj=b"new", path_in_repo="notes.txt", repo_id="me/race", repo_type="dataset")
(Path(folder) / "README.md").write_text("changed")
try:
    hub.send(Path(folder), "me/race", "dataset", before, message="late")
except hub.DistillError as error:
    print(error)
hub.TIMEOUT = 0.2
try:
    hub.check_token()
except hub.DistillError as error:
    print(error)
finally:
    hub.TIMEOUT = 60.0
hub.check_token()
"""
    hub.fault("GET /api/whoami-v2", times=1, stall=2)
    told = client.python(code, folder=str(folder))
    assert told.status == 0, told.err
    race, silent = told.out.splitlines()
    assert "somebody has changed the repository meanwhile" in race and "late" not in commits(hub, "me/race")
    assert "Nothing was sent: the connection to the Hub failed or was cut" in silent


def test_a_branch_a_pull_request_and_a_private_repository(hub: LocalHub, client: Client, folder: Path) -> None:
    assert client.cli("publish", folder, "me/private", "--private").status == 0
    assert "no such repository, or you have no right to see it; if it is private, log in" in one_line(
        client.cli("inspect", "me/private", token=None).err
    )
    assert client.cli("inspect", "me/private").status == 0
    told = client.cli("publish", folder, "me/private", "--revision", "v2", "--license", "mit")
    assert told.status == 0, told.err
    assert published(hub, "me/private", "v2") != published(hub, "me/private")
    told = client.cli("publish", folder, "me/private", "--pull-request", "--license", "apache-2.0")
    assert told.status == 0 and f"{hub.url}/datasets/me/private/discussions/1" in told.out
    assert b"apache" in hub.content("me/private", "README.md", "refs/pr/1")
    assert b"apache" not in hub.content("me/private", "README.md")
    both = client.cli("publish", folder, "me/private", "--pull-request", "--revision", "v2")
    assert both.status == 2 and "give a revision or create_pr, not both" in one_line(both.err)


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, "me/denied", "there is no token: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "me/denied", "your token is refused: log in with `hf auth login`"),
        ("hf_read", "me/denied", "you have no right to write there: check the name, and that your token may write"),
        ("hf_write", "other/denied", "you have no right to write there"),
        (
            "hf_write",
            "denied",
            "A repository on the Hugging Face Hub is OWNER/NAME, such as me/cifar10-1k; got 'denied'",
        ),
    ],
)
def test_who_may_not_publish_is_told_in_one_line(
    hub: LocalHub, client: Client, folder: Path, token: str | None, repo: str, message: str
) -> None:
    before = hashes(folder)
    told = client.cli("publish", folder, repo, token=token)
    assert told.status == (2 if repo == "denied" else 1)
    assert message in told.err.splitlines()[-1] and "Traceback" not in told.err
    assert hashes(folder) == before and (repo == "denied" or hub.repo(repo) is None)


@pytest.mark.parametrize(
    ("place", "what", "message"),
    [
        ("PUT /upload", {"cut_after": 4000}, "the connection to the Hub failed or was cut"),
        ("POST .*/preupload", {"status": 503}, "the Hub is overloaded or down (status 503): try again later."),
        ("POST .*/commit", {"status": 500}, "the Hub is overloaded or down (status 500): try again later."),
        ("POST .*/commit", {"cut_after": 10}, "the connection to the Hub failed or was cut"),
        ("POST .*/commit", {"status": 412}, "somebody has changed the repository meanwhile"),
    ],
)
def test_what_fails_in_mid_upload_is_completed_by_the_same_command(
    hub: LocalHub, client: Client, folder: Path, place: str, what: dict[str, int], message: str
) -> None:
    number = int(hashlib.sha1(f"{place}{what}".encode()).hexdigest()[:4], 16)
    repo, ours = f"me/cut-{number}", make_set()
    ours.images[2] += number  # content that the Hub has from another set is not sent again
    ours.save(folder, overwrite=True)
    before = hashes(folder)
    hub.fault(place, **what)
    told = client.cli("publish", folder, repo)
    assert told.status == 1
    last = told.err.splitlines()[-1]
    assert message in last and "your files are as they were: the same command completes it." in last
    assert hashes(folder) == before and set(published(hub, repo)) == {".gitattributes"}
    hub.heal()
    assert client.cli("publish", folder, repo).status == 0
    assert set(published(hub, repo)) == FILES | {".gitattributes"} and len(commits(hub, repo)) == 2


def test_a_hub_killed_in_mid_upload_is_completed_and_nothing_is_there_twice(
    hub: LocalHub, client: Client, tmp_path: Path
) -> None:
    ours = make_set(count=40, size=32, dim=64)
    ours.save(tmp_path / "set")
    before, objects = hashes(tmp_path / "set"), set((hub.root / "objects").iterdir())
    hub.fault("PUT /upload", stall=600)
    client.ask("publish", tmp_path / "set", "me/killed")
    wait_for(
        lambda: (
            hub.repo("me/killed") is not None and json.loads((hub.root / "faults.json").read_text())[0]["times"] < 1000
        )
    )
    hub.kill()
    told = client.answer()
    assert told.status == 1 and "the same command completes it" in told.err.splitlines()[-1]
    assert hashes(tmp_path / "set") == before
    hub.heal()
    hub.start()
    told = client.cli("publish", tmp_path / "set", "me/killed")
    assert told.status == 0, told.err
    assert commits(hub, "me/killed") == ["initial commit", "A synthetic set of 40 images"]
    assert set(published(hub, "me/killed")) == FILES | {".gitattributes"}
    assert len(set((hub.root / "objects").iterdir()) - objects) == 2  # the table and the picture, each once
    told = client.python(
        "from lightly_distill import SyntheticSet; SyntheticSet.load('me/killed').save(out)", out=str(tmp_path / "back")
    )
    assert told.status == 0 and same_bits(SyntheticSet.load(tmp_path / "back").images, ours.images)


def wait_for(happened: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_somebody_elses_dataset_is_not_overwritten(hub: LocalHub, client: Client, folder: Path) -> None:
    code = """
from huggingface_hub import HfApi
HfApi().create_repo("me/birds", repo_type="dataset")
HfApi().upload_file(path_or_fileobj=b"a,b", path_in_repo="birds.csv", repo_id="me/birds", repo_type="dataset")
"""
    assert client.python(code).status == 0
    told = client.cli("publish", folder, "me/birds")
    assert told.status == 2
    assert "me/birds on the Hugging Face Hub is a dataset that is no synthetic set: choose another name" in told.err
    told = client.cli("inspect", "me/birds")
    assert told.status == 1 and "is a dataset, but holds no synthetic set" in one_line(told.err)


def test_a_header_that_the_hub_refuses(hub: LocalHub, client: Client, folder: Path) -> None:
    told = client.cli("publish", folder, "me/header", "--license", "not-a-license")
    assert told.status == 1
    assert 'the Hub refuses the header of the card: - "license" must be one of' in told.err.splitlines()[-1]


def test_what_is_not_there_or_not_allowed_to_be_read(hub: LocalHub, client: Client, tmp_path: Path) -> None:
    told = client.cli("inspect", "me/nowhere", folder=tmp_path)
    assert told.status == 2
    assert one_line(told.err).endswith(
        "There is no folder me/nowhere, and the set of that name on the Hugging Face Hub cannot be had: there is no "
        "such repository, or you have no right to see it."
    )
    told = client.cli("inspect", "me/nowhere", token="hf_wrong", folder=tmp_path)
    assert told.status == 1 and "your token is refused" in one_line(told.err)
    make_set().save(tmp_path / "set")
    assert client.cli("publish", tmp_path / "set", "me/there").status == 0
    told = client.cli("inspect", "me/there@v9", folder=tmp_path)
    assert told.status == 2 and "me/there@v9" in told.err and "no such branch, tag or commit" in one_line(told.err)
    for place in ("nowhere", "a/b/c", "./me/there"):
        told = client.cli("inspect", place, folder=tmp_path)
        assert told.status == 2 and f"There is no synthetic set at {Path(place)}: no such folder" in one_line(told.err)
    # a folder of that name wins
    make_set(count=3).save(tmp_path / "me" / "there")
    assert "3 of 3x8x8" in client.cli("inspect", "me/there", folder=tmp_path).out


def replace(hub: LocalHub, repo: str, name: str, content: bytes) -> None:
    """Changes a file on the server, as a stranger would who owns it."""
    oid = hashlib.sha256(content).hexdigest()
    (hub.root / "objects" / oid).write_bytes(content)
    commit(hub, repo, name, {"oid": oid, "size": len(content), "lfs": True})


def commit(hub: LocalHub, repo: str, name: str, entry: dict[str, Any]) -> None:
    found = hub.repo(repo)
    assert found is not None
    parent = found["refs"]["main"]
    new = hashlib.sha1(f"{parent}{name}{entry}".encode()).hexdigest()
    files = {**found["commits"][parent]["files"], name: entry}
    found["commits"][new] = {"parent": parent, "message": "by hand", "files": files}
    found["refs"]["main"] = new
    (hub.root / "repos" / "datasets" / (repo.replace("/", "--") + ".json")).write_text(json.dumps(found))


def resign(facts: dict[str, Any]) -> bytes:
    return json.dumps(synthetic_sets.sign(facts)).encode()


def test_a_strangers_set_is_refused_before_its_data_is_fetched(
    hub: LocalHub, client: Client, home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.cli("publish", folder, "me/strange").status == 0
    facts = json.loads(hub.content("me/strange", set_facts.FACTS))
    big = {**facts, "files": {**facts["files"], set_facts.DATA: {**facts["files"][set_facts.DATA], "bytes": 10**12}}}
    extra = {**facts, "files": {**facts["files"], "model.pkl": {"bytes": 1, "sha256": "0"}}}
    cases = [
        (
            resign({**facts, "format_version": "3.0"}),
            "has format 3.0, this version of lightly-distill reads up to 2.0: ",
        ),
        (resign({**facts, "shape": {**facts["shape"], "m": 10**6, "H": 4096}}), "refused, at most"),
        (resign(big), f"{set_facts.DATA} has {facts['files'][set_facts.DATA]['bytes']} bytes, "),
        (resign(extra), "names a file that no synthetic set has: 'model.pkl'"),
        (b"{" + b" " * (set_facts.MAX_FACTS + 1), "larger than 16 MiB"),
        (b"not json", "cannot be read"),
    ]
    asked = len(hub.log())
    for content, message in cases:
        replace(hub, "me/strange", set_facts.FACTS, content)
        told = client.cli("inspect", "me/strange", token=None)
        assert told.status == 1 and message in one_line(told.err), (message, told.err)
    # a table that is as large as its JSON says, but not as its shape says
    replace(hub, "me/strange", set_facts.FACTS, resign(big))
    commit(hub, "me/strange", set_facts.DATA, {**published(hub, "me/strange")[set_facts.DATA], "size": 10**12})
    told = client.cli("inspect", "me/strange", token=None)
    assert told.status == 1 and "bytes, more than a set of the shape" in one_line(told.err)
    assert not [line for line in hub.log()[asked:] if ".parquet" in line]


def test_only_what_a_set_is_made_of_is_fetched(hub: LocalHub, client: Client, home: Path, folder: Path) -> None:
    assert client.cli("publish", folder, "me/extra").status == 0
    replace(hub, "me/extra", "model.pkl", b"cos\nsystem\n")
    replace(hub, "me/extra", "extra.py", b"raise SystemExit")
    assert client.cli("inspect", "me/extra", token=None).status == 0
    fetched = {path.name for path in home.rglob("datasets--me--extra/snapshots/*/**/*") if path.is_file()}
    assert fetched == {set_facts.FACTS, "preview.png", Path(set_facts.DATA).name}


def test_damage_on_the_hub_is_refused_and_damage_in_the_cache_is_mended(
    hub: LocalHub, client: Client, home: Path, tmp_path: Path
) -> None:
    make_set(count=7).save(tmp_path / "set")
    assert client.cli("publish", tmp_path / "set", "me/damaged").status == 0
    assert client.cli("inspect", "me/damaged").status == 0
    (cached,) = home.glob("hub/datasets--me--damaged/snapshots/*/data/*.parquet")
    damaged = bytearray(cached.read_bytes())
    damaged[1000] ^= 1
    cached.resolve().write_bytes(damaged)
    assert client.cli("inspect", "me/damaged").status == 0 and cached.read_bytes() != bytes(damaged)

    stored = hub.root / "objects" / published(hub, "me/damaged")[set_facts.DATA]["oid"]
    stored.write_bytes(damaged)
    cached.resolve().write_bytes(damaged)
    told = client.cli("inspect", "me/damaged")
    assert told.status == 1
    assert f"{set_facts.DATA} is not the file that was written" in one_line(told.err)


def test_without_network_the_cache_serves(hub: LocalHub, client: Client, folder: Path, tmp_path: Path) -> None:
    for repo in ("me/cached", "me/unseen"):
        assert client.cli("publish", folder, repo).status == 0
    assert client.cli("inspect", "me/cached").status == 0
    hub.fault(".", status=503)
    told = client.cli("inspect", "me/cached")
    assert told.status == 0 and "6 of 3x8x8" in told.out
    assert "cannot be reached; me/cached is taken from the cache." in told.err
    told = client.cli("inspect", "me/unseen")
    assert told.status == 1
    assert "neither from the Hugging Face Hub nor from its cache: the Hub is overloaded or down" in one_line(told.err)
    hub.kill()
    assert client.cli("inspect", f"me/cached@{head(hub, 'me/cached')}").status == 0
    told = client.cli("inspect", "me/unseen")
    assert told.status == 1 and "the connection to the Hub failed or was cut" in one_line(told.err)
    told = client.cli("publish", folder, "me/unseen")
    assert told.status == 1 and "the connection to the Hub failed or was cut" in one_line(told.err)
    told = client.cli("publish", folder, "me/unseen", "--dry-run", tmp_path / "dry")
    assert told.status == 0 and "Without the Hub, the card is written as for a new repository." in told.err
    assert len(SyntheticSet.load(tmp_path / "dry")) == 6
    hub.heal()
    hub.start()
    code = """
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
try:
    from lightly_distill import SyntheticSet
    print(len(SyntheticSet.load("me/cached")))
    try:
        SyntheticSet.load("me/unseen")
    except Exception as error:
        print(error)
finally:
    constants.HF_HUB_OFFLINE = False
"""
    count, refused = client.python(code).out.splitlines()
    assert count == "6" and "HF_HUB_OFFLINE is set: unset it." in refused


def test_without_network_a_mistyped_folder_is_no_fault_of_the_network(
    hub: LocalHub, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "birds").mkdir(parents=True)
    code = f"""
import os
from lightly_distill import SyntheticSet, UsageError
before = os.getcwd()
os.chdir({str(tmp_path)!r})
try:
    SyntheticSet.load("runs/bird")
except UsageError as error:
    print(error)
finally:
    os.chdir(before)
"""
    hub.fault(".", status=503)
    told = client.python(code).out
    hub.heal()
    assert told.startswith("There is no folder runs/bird. Did you mean 'runs/birds'? (")


def test_a_student_goes_to_the_hub_and_timm_takes_it_from_there(hub: LocalHub, client: Client, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 16, 16, generator=generator(0, "student"))
    folder = SyntheticSet(images, images[:, 0, 0], mean=MEAN, std=STD).save(tmp_path / "set")
    assert client.cli("publish", folder, "me/for-student").status == 0
    for student, repo in (("test_resnet", "me/student"), ("convnet_4_4", "me/convnet"), ("test_vit", "me/vit")):
        out = tmp_path / student
        train = ["pretrain", "--set", "me/for-student", "--student", student, "--steps", "1", "--out", out]
        if student == "test_resnet":
            hub.fault("PUT /upload", status=403)
            told = client.cli(*train, "--push", repo)
            assert told.status == 1 and "you have no right to write there" in told.err.splitlines()[-1]
            hub.heal()
            weights = (out / "model.safetensors").stat().st_mtime_ns
        told = client.cli(*train, "--push", repo)
        assert told.status == 0, told.err
        if student == "test_resnet":  # it was trained already
            assert (out / "model.safetensors").stat().st_mtime_ns == weights and "Wrote" not in told.out
        files = set(published(hub, repo, kind="models"))
        assert files == {".gitattributes", "README.md", "config.json", "model.safetensors"}
        recipe = "".join(line[4:] + "\n" for line in told.out.splitlines() if line.startswith("    "))
        check = """
from safetensors.torch import load_file
truth = load_file(weights)
found = backbone.state_dict()
assert set(found) == set(truth) and all((found[name] == truth[name]).all() for name in truth)
assert backbone.num_classes == 0 and tuple(backbone.pretrained_cfg["mean"]) == tuple(mean)
"""
        # what the command printed does what it says, for a stranger
        recipe = recipe.split("import timm")[-1]
        told = client.python("import timm" + recipe + check, token=None,
                             weights=str(out / "model.safetensors"), mean=MEAN)  # fmt: skip
        assert told.status == 0, told.err
        card = hub.content(repo, "README.md", kind="models").decode()
        header = yaml.safe_load(card.split("---")[1])
        assert header["library_name"] == "timm" and header["datasets"] == ["me/for-student"]
        assert "me/for-student@" in card and f"hf_hub:{repo}" in card
    code = """
from huggingface_hub import HfApi
HfApi().create_repo("me/bert")
HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/bert")
"""
    assert client.python(code).status == 0
    told = client.cli(*train, "--push", "me/bert")
    assert told.status == 2 and "me/bert on the Hugging Face Hub is a model that is no student of ours" in told.err


def test_near_copies_are_shown_and_need_a_yes(hub: LocalHub, client: Client, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_photos(tmp_path / "photos")
    index, half = torch.arange(5, 13), (0.5, 0.5, 0.5)  # the target's own mean and deviation
    real = (tiny.images(60)[index].float() / 255 - 0.5) / 0.5
    SyntheticSet(real, torch.randn(8, 512), mean=half, std=half, source_index=index).save(run / "set")
    (run / "pictures").mkdir()
    config = {"data": str(tmp_path / "photos"), "target": f"timm:test_resnet@{write_target(tmp_path)}"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    told = client.cli("publish", run, "me/copies")
    assert told.status == 2 and hub.repo("me/copies") is None
    last = told.err.splitlines()[-1]
    assert "8 of 8 synthetic images are near copies of real ones." in last and "say --yes" in last
    assert (run / "pictures" / "closest_pairs.png").is_file() and "closest_pairs.png" in last
    told = client.cli("publish", run, "me/copies", "--yes")
    assert told.status == 0, told.err
    card = hub.content("me/copies", "README.md").decode()
    assert "8 of 8 synthetic images are near copies" in card
    assert "For 8 of 8, the nearest real image in pixels is the one that they started from." in card
    assert json.loads(hub.content("me/copies", set_facts.FACTS))["metrics"]["near_copies"]["near"] == 8
    assert "closest_pairs.png" not in published(hub, "me/copies")


def write_photos(folder: Path) -> None:
    from torchvision.transforms.functional import to_pil_image

    folder.mkdir()
    for number, image in enumerate(tiny.images(60)):
        to_pil_image(image).save(folder / f"{number:02d}.png")


def write_target(folder: Path) -> Path:
    import timm

    path = folder / "target.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return path
