from typing import Any

import pytest
import torch
import yaml

from lightly_distill import DistillError, SyntheticSet
from lightly_distill.synthetic import card, card_frame
from pages import NASTY


def make(provenance: dict[str, Any], count: int = 2) -> SyntheticSet:
    images, reps = torch.zeros(count, 3, 8, 8), torch.zeros(count, 4)
    return SyntheticSet(images, reps, mean=(0.5,) * 3, std=(0.2,) * 3, provenance=provenance)


def test_the_card_tells_what_is_recorded() -> None:
    text = card.text(
        make(
            {
                "source": {"name": "cifar10#train", "images": 50000, "fingerprint": "a" * 64},
                "heldout_loss": {"initial": 0.25, "final": 0.125},
                "seconds": 61.5,
                "device": "cpu",
                "peak_memory_bytes": 3 * 2**30,
                "chunk_size": 2,
                "threads": 4,
                "processes": 1,
                "tf32": "off",
                "versions": {"torch": "2.9.0", "timm": "1.0.20"},
            }
        )
    )
    for part in (
        "| source | cifar10#train, 50000 images, hash aaaaaaaaaaaa |",
        "| outer loss, held-out images | 0.25 at the start, 0.125 at the end |",
        "| time | 61.5 s, cpu |",
        "| peak memory | 3 GiB |",
        "| chunk size | all 2 images at a time |",
        "| threads | 4 |",
        "| TF32 | off |",
        "| versions | torch 2.9.0, timm 1.0.20 |",
        "2 learned images of 8x8 pixels",
        "mean (0.5, 0.5, 0.5)",
    ):
        assert part in text


def test_the_card_says_of_how_many_images_the_loss_is() -> None:
    row = "| outer loss, held-out images |"
    measured = {"heldout_loss": {"initial": 0.25, "final": 0.125}, "heldout_images": 20}
    assert f"{row} 0.25 at the start, 0.125 at the end, of 20 images |" in card.text(make(measured))
    nothing = {"heldout_loss": {"initial": None, "final": None}, "heldout_images": 0}
    assert row not in card.text(make(nothing))


def test_the_card_shows_chunks_processes_and_what_changed_between_sessions() -> None:
    versions = {"python": "3.11.7", "torch": "2.9.0"}
    sessions = [
        {"from_step": 0, "device": "CPU x86_64, AVX2", "threads": 2, "versions": versions},
        {"from_step": 7, "device": "CPU x86_64, AVX2", "threads": 4, "versions": versions | {"torch": "2.10.0"}},
        {"from_step": 9, "device": "NVIDIA H100", "threads": 4, "versions": versions | {"torch": "2.10.0"}},
    ]
    text = card.text(make({"chunk_size": 1, "threads": 4, "processes": 2, "sessions": sessions}))
    for part in (
        "| chunk size | 1 of 2 images at a time |",
        "| threads | 4 in each of 2 processes |",
        "| resumed | at step 7 with threads: 2 -> 4, versions.torch: 2.9.0 -> 2.10.0; at step 9 with "
        "device: CPU x86_64, AVX2 -> NVIDIA H100 |",
    ):
        assert part in text
    text = card.text(make({"sessions": sessions[1:2]}))
    assert "| resumed | at step 7, before which nothing is recorded |" in text


@pytest.mark.parametrize(
    "provenance",
    [
        {},
        {"source": "x"},
        {"source": {}},
        {"seconds": 3},
        {"heldout_loss": None},
        {"chunk_size": "x", "threads": [], "tf32": {}, "sessions": {"a": 1}},
        {"chunk_size": None, "sessions": [1, {}, {"from_step": []}, {"device": None}]},
    ],
)
def test_a_card_of_little_known_is_still_a_card(provenance: dict[str, Any]) -> None:
    assert "# A synthetic set of 2 images" in card.text(make(provenance))


def test_a_name_cannot_break_the_table() -> None:
    assert "| source | a/b c |" in card.text(make({"source": {"name": "a|b\nc"}}))


def test_names_of_a_stranger_are_only_text() -> None:
    nasty = f"{NASTY} {card_frame.END}"
    made = make({"source": {"name": nasty}, "target": nasty, "config": {"student": nasty}})
    made.metrics = {"transfer": [{"student": nasty, "seeds": [0], "arms": {nasty: {nasty: [0.5]}}}]}
    text = card.text(made)
    tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert "&lt;script>alert(1)&lt;/script>/x y\\`z\\`\\[a\\](b)" in tables and "\x1b" not in text
    assert "<script" not in tables and "[a](b)" not in tables and tables.count("50.0") == 1
    assert text.count(card_frame.END) == 1 and card_frame.own_text(text) == ""


def header(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text.split("---")[1])
    return loaded


def test_the_header_is_what_the_hub_understands() -> None:
    told = header(card.text(make({}), repo_id="me/x", license="cc-by-4.0"))
    assert told == {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
        "license": "cc-by-4.0",
        "tags": ["lightly-distill", "dataset-distillation", "self-supervised-learning", "image"],
        "task_categories": ["image-feature-extraction"],
        "size_categories": ["n<1K"],
    }
    assert "license" not in header(card.text(make({})))
    assert header(card.text(make({}, count=1000)))["size_categories"] == ["1K<n<10K"]


def test_text_and_header_of_the_users_own_stay_and_ours_is_new() -> None:
    old = card.text(make({"seconds": 3}), license="mit").replace("license: mit", "license: mit\ndataset_info: {a: 1}")
    old = old.replace(card_frame.BEGIN, f"Mine, before.\n\n{card_frame.BEGIN}").replace("tags:\n", "tags:\n- birds\n")
    old = old.replace("- image-feature-extraction", "- image-classification") + "\nMine, after.\n"
    new = card.text(make({"seconds": 4}), before=old)
    assert "Mine, before.\n\n<!--" in new and new.endswith("-->\n\nMine, after.\n")
    assert "| time | 4 s |" in new and "| time | 3 s |" not in new
    told = header(new)
    assert told["license"] == "mit" and told["tags"][-1] == "birds" and "dataset_info" not in told
    assert told["task_categories"] == ["image-classification"]
    assert card.text(make({"seconds": 4}), before=new) == new
    assert header(card.text(make({}), before=new, license="cc0-1.0"))["license"] == "cc0-1.0"
    assert card_frame.own_text(new) == "Mine, before.\n\n\nMine, after."
    assert card_frame.own_text(card.text(make({}))) == ""


@pytest.mark.parametrize("before", ["Only words.", "---\nlicense: mit\n---\nOnly words.\n", "Only words.\r\n"])
def test_a_card_of_somebody_elses_goes_before_ours(before: str) -> None:
    new = card.text(make({}), before=before)
    assert f"Only words.\n\n{card_frame.BEGIN}" in new and new.startswith("---\nconfigs:") and new.count("---\n") >= 2
    assert card.text(make({}), before=new) == new


def test_a_byte_order_mark_hides_no_header_and_a_tag_may_be_plain_text() -> None:
    new = card.text(make({}), before="\ufeff---\r\nlicense: mit\r\ntags: birds\r\n---\r\nOnly words.\r\n")
    told = header(new)
    assert told["license"] == "mit" and told["tags"] == [*card.TAGS, "birds"]
    assert f"Only words.\n\n{card_frame.BEGIN}" in new and "\ufeff" not in new and new.count("license: mit") == 1
    assert card_frame.merged_tags(["image"], {"tags": "image"}) == ["image"]
    assert card_frame.merged_tags(["image"], {"tags": None}) == ["image"]


def test_a_header_that_is_no_yaml_is_told() -> None:
    with pytest.raises(DistillError, match=r"The header of the card that is there is not YAML .*: correct it first"):
        card.text(make({}), before="---\na: [\n---\ntext")


def test_sizes_losses_by_student_transfer_and_near_copies_are_told() -> None:
    space = {"near_share_of_real": 0.02}
    known = {
        "source": {"name": "photos", "images": 1000, "image_size": 8},
        "heldout_loss": {"initial": 2, "final": 1, "by_student": {"a": {"initial": 3, "final": None}}},
        "config": {"student": "a,b", "init": "noise"},
    }
    arms = {"scratch": {"t/knn": [0.1, 0.2]}, "distilled": {"t/knn": [0.5, 0.5], "t/linear": [0.25]}}
    made = make(known)
    made.metrics = {
        "transfer": [{"student": "resnet|18", "seeds": [0, 1], "arms": arms}],
        "near_copies": {"images": 2, "near": 1, "traced": 2, "share": 0.5, "pixels": space, "representations": space},
    }
    text = card.text(made, size=4000, source_license="their own", license="mit")
    for part in (
        "| size | 4 kB on disk, without this card |",
        "| size of the source | 192 kB as 8-bit pixels of 8x8, not compressed; those of the set would be 384 B |",
        "| of a | 3 at the start |",
        "| started from | noise |",
        "| Accuracy in % of `resnet/18`, pre-trained on | scratch | distilled |\n| --- | --- | --- |",
        "| t/knn | 15.0 ± 7.1 | 50.0 ± 0.0 |\n| t/linear | - | 25.0 |",
        "Mean and standard deviation of 2 seeds.",
        "1 of 2 synthetic images is a near copy of a real one",
        "Of real images, 2.0% are that near to another.",
        "For 2 of 2, the nearest real image in pixels is the one that they started from.",
        "This set: mit. The real images that it was distilled from: their own.",
        "student: a,b\ninit: noise",
    ):
        assert part in text, part
    text = card.text(make({}))  # of a set that nobody has published
    assert card.NOT_YET_MEASURED in text and card.NOT_YET_CHECKED in text and "No licence was given" in text
    text = card.text(make({}), repo_id="me/photos")
    assert card.NOT_MEASURED in text and card.NOT_CHECKED in text


@pytest.mark.parametrize(
    "metrics", [{"transfer": 3, "near_copies": []}, {"transfer": [{}], "near_copies": {"near": 1}}]
)
def test_measurements_that_are_none_are_not_told(metrics: dict[str, Any]) -> None:
    made = make({})
    made.metrics = metrics
    assert card.NOT_YET_MEASURED in card.text(made) and card.NOT_YET_CHECKED in card.text(made)


@pytest.mark.parametrize(
    ("distiller", "words"),
    [(None, "from unlabelled images"), ("krr-labels", "learned labels"), ("dm", "distribution matching")],
)
def test_the_card_says_what_made_the_set(distiller: str | None, words: str) -> None:
    text = card.text(make({} if distiller is None else {"distiller": distiller}))
    assert words in text and ("unlabelled" in text) == (distiller is None)
