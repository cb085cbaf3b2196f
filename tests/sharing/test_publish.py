"""What of publishing needs no Hub; the rest is in integrations/huggingface/test_hub.py."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from lightly_distill import DistillError, PretrainConfig, PublishOptions, SyntheticSet, UsageError, pretrain
from lightly_distill.adapters import Repository
from lightly_distill.evaluation.results import read_evaluation
from lightly_distill.sharing.publish import publish
from lightly_distill.sharing.publish_student import card_text, publish_student
from lightly_distill.synthetic import address
from lightly_distill.synthetic.pretrain import is_trained
from synthetic_sets import make_set


def results(synthetic: SyntheticSet, **changes: Any) -> list[dict[str, Any]]:
    one = {
        "setting": {"student": "resnet18", "steps": 3, "set": synthetic.provenance, "labels": [None]},
        "command": "lightly-distill evaluate --set secret/path",
        "seeds": [0, 1],
        "images": {"distilled": 6},
        "arms": {"distilled": {"t/knn": [0.5, 0.25]}},
        "machine": "m",
        "date": "2026-01-01",
    }
    return [one | changes]


def test_what_evaluate_measured_of_this_set_is_taken(tmp_path: Path) -> None:
    ours = make_set()
    (tmp_path / "results.json").write_text(json.dumps(results(ours)))
    (taken,) = read_evaluation(tmp_path, ours)
    assert taken["student"] == "resnet18" and taken["arms"] == {"distilled": {"t/knn": [0.5, 0.25]}}
    assert "secret" not in json.dumps(taken) and "provenance" not in json.dumps(taken)


@pytest.mark.parametrize("content", ["", "3", "[3]", '[{"setting": {}}]', None])
def test_what_is_no_evaluation_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UsageError, match=r"results\.json holds no results of `evaluate`"):
        read_evaluation(tmp_path, make_set())


def test_the_folder_of_a_sweep_names_the_evaluations_and_sets_below_it(tmp_path: Path) -> None:
    ours = make_set()
    ours.save(tmp_path / "size-6" / "run" / "set")
    (tmp_path / "size-6" / "evaluation").mkdir()
    (tmp_path / "size-6" / "evaluation" / "results.json").write_text("[]")
    with pytest.raises(UsageError, match=r"Below it there are some: .*size-6/evaluation\.$"):
        read_evaluation(tmp_path, ours)
    with pytest.raises(UsageError, match=r"nor in its folder 'set'\. Below it there are some: .*size-6/run/set\.$"):
        SyntheticSet.load(tmp_path)


@pytest.mark.parametrize(
    ("license", "told"),
    [("cc-by-4", "Did you mean 'cc-by-4.0'? 'other' stands"), ("foo", "there. 'other' stands"), ("mit", "")],
)
def test_a_license_that_the_hub_may_refuse_is_told_before_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, license: str, told: str
) -> None:
    with pytest.raises(UsageError, match="holds no results"):
        publish(make_set(), "me/set", license=license, dry_run=tmp_path / "sent", evaluation=tmp_path)
    assert told in caplog.text and bool(told) == ("may refuse" in caplog.text)


@pytest.mark.parametrize("arms", [{"distilled": {"t/knn": [0.5]}}, {"random": {"t/knn": [0.5, 0.25]}}])
def test_an_evaluation_that_was_interrupted_is_refused(tmp_path: Path, arms: dict[str, Any]) -> None:
    ours = make_set()
    (tmp_path / "results.json").write_text(json.dumps(results(ours, arms=arms)))
    with pytest.raises(UsageError, match="is not whole"):
        read_evaluation(tmp_path, ours)


def test_results_of_another_set_are_refused(tmp_path: Path) -> None:
    ours, other = make_set(), make_set()
    other.provenance["steps"] = 8
    (tmp_path / "results.json").write_text(json.dumps(results(other)))
    with pytest.raises(UsageError, match=r"results\.json are of another set"):
        read_evaluation(tmp_path, ours)


@pytest.mark.parametrize(
    ("place", "expected"),
    [("a/b/c", None), ("./a/b", None), ("/a/b", None), ("a", None), ("~/a", None), ("a/b@", None), ("-a/b", None)],
)
def test_what_can_be_no_repository_is_a_folder(place: str, expected: None) -> None:
    assert address.local_folder(place) == (Path(place), "")


def test_two_revisions_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="Two revisions are asked for: v1 in 'a/b@v1', and v2"):
        address.local_folder("a/b@v1", "v2")


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("/home/alice/patients", "patients"),
        ("/home/alice/patients/#train", "patients/#train"),
        ("~/scans/patients#train", "patients#train"),
        ("C:\\Users\\alice\\patients", "patients"),
        ("timm:resnet18@/home/alice/weights.safetensors", "timm:resnet18@weights.safetensors"),
        ("huggingface:/home/alice/patients#train", "huggingface:patients#train"),
        ("me/photos#train", "me/photos#train"),
        ("photos", "photos"),
    ],
)
def test_no_folder_of_the_users_is_published(
    name: str, public: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = SimpleNamespace(look_at=lambda *args: Repository(None, (), None), publish=publish)
    monkeypatch.setattr(address, "find_hub", lambda repo_id: (hub, repo_id))
    ours = make_set()
    ours.provenance |= {"source": {"name": name, "images": 60}, "target": {"name": name, "encoder": "e"}}
    ours.push_to_hub("me/photos", PublishOptions(dry_run=tmp_path / "dry"))
    sent = SyntheticSet.load(tmp_path / "dry").provenance
    assert (sent["source"], sent["target"]["name"]) == ({"name": public, "images": 60}, public)
    card = (tmp_path / "dry" / "README.md").read_text()
    assert f"| source | {public}, 60 images |" in card and "alice" not in card
    assert ours.provenance["source"]["name"] == name  # the set itself keeps it


def test_no_folder_of_a_task_is_published_and_tasks_of_one_name_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = SimpleNamespace(look_at=lambda *args: Repository(None, (), None), publish=publish)
    monkeypatch.setattr(address, "find_hub", lambda repo_id: (hub, repo_id))
    ours = make_set()
    tasks = {
        "/home/alice/a/birds": 0.5,
        "/home/alice/b/birds": 0.25,
        "birds": 0.125,
        "~/cats#train": 1.0,
        "digits": 0.0,
    }
    arms = {arm: {f"{task}/knn": [value, value] for task, value in tasks.items()} for arm in ("distilled", "scratch")}
    (tmp_path / "results.json").write_text(json.dumps([*results(ours, arms=arms), *results(ours, arms=arms)]))
    ours.push_to_hub("me/photos", dry_run=tmp_path / "dry", evaluation=tmp_path)
    apart = {"birds 2": 0.5, "birds 3": 0.25, "birds": 0.125, "cats#train": 1.0, "digits": 0.0}
    expected = {f"{task}/knn": [value, value] for task, value in apart.items()}
    for measured in SyntheticSet.load(tmp_path / "dry").metrics["transfer"]:
        assert measured["arms"] == {"distilled": expected, "scratch": expected}
    sent = [(tmp_path / "dry" / name).read_text() for name in ("README.md", "lightly_distill.json")]
    assert "| birds 2/knn | 50.0" in sent[0] and "alice" not in "".join(sent) and "~/" not in "".join(sent)


def test_no_folder_of_the_users_is_published_with_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = make_set()
    ours.images.clamp_(-3, 3)
    ours.provenance["source"]["name"] = "/home/alice/patients"
    pretrain("convnet_4_4", ours, steps=1, device="cpu", out=tmp_path / "student")
    sent: dict[str, str] = {}

    def send(workspace: Path, *args: Any, **options: Any) -> SimpleNamespace:
        sent.update({name: (workspace / name).read_text() for name in ("config.json", "README.md")})
        return SimpleNamespace(url="there")

    nothing = SimpleNamespace(card=None)
    client = SimpleNamespace(check_token=lambda: None, look_at=lambda *args: nothing, send=send)
    monkeypatch.setattr(address, "find_hub", lambda repo_id: (client, repo_id))
    assert publish_student(tmp_path / "student", "me/student") == "there"
    assert json.loads(sent["config.json"])["lightly_distill"]["synthetic_set"]["source"]["name"] == "patients"
    assert "| distilled from | patients |" in sent["README.md"] and "alice" not in "".join(sent.values())


def words_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_a_dry_run_replaces_what_an_earlier_one_left_and_no_set_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = SimpleNamespace(look_at=lambda *args: Repository(None, (), None), publish=publish)
    monkeypatch.setattr(address, "find_hub", lambda repo_id: (hub, repo_id))
    own, other, dry = tmp_path / "own", tmp_path / "other", tmp_path / "dry"
    make_set().save(own)
    make_set(count=9).save(other)
    # the user's own words are no sign of a dry run
    (other / "README.md").write_text(f'Mine: SyntheticSet.load("me/photos")\n{words_of(other)}Mine.\n')
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "README.md").write_text("Mine.")
    before = {folder: words_of(folder) for folder in (own, other, notes)}
    for folder in before:
        with pytest.raises(UsageError, match=rf"{folder} holds what no dry run for me/photos wrote: choose another"):
            SyntheticSet.load(own).push_to_hub("me/photos", dry_run=folder)
        assert words_of(folder) == before[folder]
    SyntheticSet.load(own).push_to_hub("me/photos", dry_run=dry)
    SyntheticSet.load(other).push_to_hub("me/photos", dry_run=dry)
    assert len(SyntheticSet.load(dry)) == 9
    with pytest.raises(UsageError, match=r"no dry run for me/others wrote"):
        publish(own, "me/others", dry_run=dry)
    SyntheticSet.load(dry).save(tmp_path / "kept")  # what was a dry run's is now a set like any other
    with pytest.raises(UsageError, match="no dry run for me/photos wrote"):
        publish(own, "me/photos", dry_run=tmp_path / "kept")


def test_a_header_on_the_hub_that_is_no_yaml_is_told_before_a_dry_run_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = SimpleNamespace(look_at=lambda *args: Repository("---\na: [\n---\n", ("README.md",), None), publish=publish)
    monkeypatch.setattr(address, "find_hub", lambda repo_id: (hub, repo_id))
    with pytest.raises(DistillError, match="is not YAML"):
        publish(make_set(), "me/photos", dry_run=tmp_path / "dry")
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("missing", ["model.safetensors", "half", "input_size", "mean", "pretraining"])
def test_a_student_that_is_not_whole_is_refused_before_the_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    ours = make_set()
    ours.images.clamp_(-3, 3)
    out = tmp_path / "student"
    pretrain("convnet_4_4", ours, steps=1, device="cpu", out=out)
    weights, config = out / "model.safetensors", json.loads((out / "config.json").read_text())
    if missing == "model.safetensors":
        weights.unlink()
    elif missing == "half":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        del config["lightly_distill"][missing]
    (out / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(address, "find_hub", lambda repo_id: (SimpleNamespace(), repo_id))  # has nothing to be asked
    with pytest.raises(UsageError, match=rf"{out} holds no student of `pretrain`: ") as told:
        publish_student(out, "me/student")
    assert missing == "half" or missing in str(told.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"data": "photos"}, "No run of this set says what its target model is: give --target (target in Python)."),
        (
            {"target": "timm:resnet18"},
            "No run of this set says what its real images are: give --data (data in Python).",
        ),
        (
            {"representations": "kept"},
            "No run of this set says what its real images and its target model are: give --data and --target (data and "
            "target in Python).",
        ),
    ],
)
def test_what_a_look_for_near_copies_lacks_is_named_with_its_option(
    tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as refused:
        publish(make_set(), "me/photos", dry_run=tmp_path / "dry", **given)
    assert str(refused.value) == told


def test_a_student_is_known_by_all_that_decides_it(tmp_path: Path) -> None:
    ours = make_set()
    ours.images.clamp_(-3, 3)
    recipe = PretrainConfig(steps=1, batch_size=4, weight_decay=0.0)
    given: dict[str, Any] = {"student": "convnet_4_4", "synthetic": ours, "config": recipe}
    out = tmp_path / "student"
    assert not is_trained(out=out, **given)
    pretrain(out=out, device="cpu", **given)
    assert is_trained(out=out, **given)
    assert not is_trained(out=out, **{**given, "config": replace(recipe, steps=2)})
    assert not is_trained(out=out, **given, seed=1)
    assert not is_trained(out=out, **{**given, "student": "convnet_8_8"})
    other = make_set()
    other.provenance["steps"] = 8
    assert not is_trained(out=out, **{**given, "synthetic": other})
    (out / "config.json").write_text("[]")
    assert not is_trained(out=out, **given)
    with pytest.raises(UsageError, match="holds no student of `pretrain`"):
        publish_student(out, "me/student")


def test_the_card_of_a_student_names_the_set_and_keeps_what_is_the_users() -> None:
    facts = {
        "student": "resnet18",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "input_size": [3, 32, 32],
        "pretraining": {"steps": 3},
        "synthetic_set": {"source": {"name": "cifar|10"}, "target": "t"},
        "set": "me/set@abc",
    }
    text = card_text(facts, "import timm", None)
    header = yaml.safe_load(text.split("---")[1])
    assert header["datasets"] == ["me/set"] and header["library_name"] == "timm" and "license" not in header
    for part in (
        "| synthetic set | me/set@abc |",
        "| distilled from | cifar/10 |",
        "32x32",
        "```python\nimport timm\n```",
    ):
        assert part in text, part
    edited = text.replace("library_name: timm", "library_name: timm\nlicense: mit") + "Mine.\n"
    again = card_text({**facts, "pretraining": {"steps": 4}}, "import timm", edited)
    assert "license: mit" in again and again.endswith("Mine.\n") and "steps 4" in again and "steps 3" not in again
    del facts["set"]
    assert "datasets" not in yaml.safe_load(card_text(facts, "", None).split("---")[1])
