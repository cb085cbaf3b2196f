"""Two processes of one machine decode their real images once."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import several
import tiny
from lightly_distill.data.decode import Frame
from lightly_distill.data.source import Source, open_source

COUNT = 150  # more than two chunks

SCRIPT = """
import json, os, tempfile
from types import SimpleNamespace
from lightly_distill.data import shared, spool
from lightly_distill.data.source import find_images
from lightly_distill.errors import DistillError
from lightly_distill.runtime.processes import launched
from test_shared import Photos, Stream, facts

processes, _ = launched("cpu")
for case in json.loads(sys.argv[1]):
    shared.free_memory = lambda device: case.get("memory", 10**9)
    spool.shutil.disk_usage = lambda folder: SimpleNamespace(free=case.get("room", 10**9))
    tempfile.tempdir = case["folder"]
    os.makedirs(tempfile.tempdir, exist_ok=True)
    photos = Photos(case.get("count", {}).get(str(processes.index), 150))
    images = find_images(Stream(photos) if case.get("stream") else photos, image_size=8)
    photos.reads, photos.fails_at = 0, case.get("fails_at")
    try:
        source = shared.open_together(images, processes)
        result = {"reads": photos.reads, **facts(source)}
    except DistillError as error:
        result = {"error": str(error)}
    print(json.dumps({**result, "left": os.listdir(tempfile.tempdir)}))
"""


class Photos:
    """A user's dataset that counts what is read of it."""

    def __init__(self, count: int = COUNT) -> None:
        self._images, self.reads = tiny.images(count), 0
        self.fails_at: int | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        if index == self.fails_at:
            raise KeyError(index)
        return self._images[index]


class Stream:
    """The same without an index."""

    def __init__(self, photos: Photos) -> None:
        self._photos = photos

    def __iter__(self) -> Iterator[Tensor]:
        return (self._photos[index] for index in range(len(self._photos)))


def facts(source: Source) -> dict[str, Any]:
    """What must not depend on how many processes there are."""
    some = torch.tensor([5, 77, 140])
    larger = next(source.again([some], Frame(16)))
    images = [source.read(some.flip(0)), *source.stream([some, some[:2]]), larger]
    return {
        "images": [hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in images],
        "known": [source.fingerprint, source.originals, source.sides.tolist(), len(source), source.kept.tolist()],
        "in_memory": source.in_memory,
    }


def in_two(cases: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What the two processes say of each case."""
    script = f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n{SCRIPT}"
    told = several.finish(several.start(script, cases))
    for status, _, errors in told:
        assert status == 0, errors
    first, second = ([json.loads(line) for line in output.splitlines()] for _, output, _ in told)
    return list(zip(first, second, strict=True))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    cases: dict[str, dict[str, Any]] = {
        "memory": {},
        "disk": {"memory": 0},
        "stream": {"stream": True},
        "no room": {"room": 0},
        "fails": {"fails_at": COUNT - 1},
        "others": {"count": {"1": COUNT - 1}},
    }
    folder = tmp_path_factory.mktemp("shared")
    given = [{"folder": str(folder / name), **case} for name, case in cases.items()]
    return dict(zip(cases, in_two(given), strict=True))


@pytest.mark.parametrize("case", ["memory", "disk", "stream"])
def test_one_process_of_a_machine_decodes_and_all_have_what_one_alone_would_have(
    case: str, told: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    photos = Photos()
    alone = open_source(Stream(photos) if case == "stream" else photos, image_size=8)
    first, second = told[case]
    assert first.pop("reads") - second.pop("reads") == COUNT
    assert first == second
    assert first.pop("left") == []  # the file has no name
    own = json.loads(json.dumps(facts(alone)))
    assert first == {**own, "in_memory": case == "memory"}


def test_without_room_for_the_file_each_decodes_for_itself(
    told: dict[str, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    first, second = told["no room"]
    assert first == second and first["reads"] >= COUNT and first["left"] == []
    assert first["images"] == told["memory"][0]["images"]


def test_what_the_one_that_decodes_fails_with_is_told_by_all(
    told: dict[str, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    first, second = told["fails"]
    assert first == second == {"error": "Item 149 of Photos: the dataset fails with KeyError: 149.", "left": []}


def test_different_images_are_refused_though_one_process_decodes(
    told: dict[str, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    for each in told["others"]:
        assert each == {"error": "The processes were given different real images: give all the same.", "left": []}
