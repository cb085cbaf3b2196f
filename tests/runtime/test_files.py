import errno
import os
from pathlib import Path

import pytest

from lightly_distill.errors import DistillError
from lightly_distill.runtime.files import remove, replacing, writing


def test_the_old_file_stays_whole_until_the_new_one_is(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file.txt"
    for text in ("old", "new"):
        before = path.read_text() if path.exists() else None
        with replacing(path) as partial:
            partial.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_what_ends_the_writing_leaves_the_old_file_and_no_partial_one(tmp_path: Path, error: type[Exception]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    expected = (
        (DistillError, r"file.txt cannot be written: .*No space left") if isinstance(error, OSError) else (error,)
    )
    with pytest.raises(expected[0], match=expected[1] if len(expected) > 1 else None), replacing(path) as partial:
        partial.write_text("ne")
        raise error
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_error_of_the_system_names_the_file_even_if_the_system_does_not(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"x.png cannot be written: \[Errno 28\]"), writing(tmp_path / "x.png"):
        raise OSError(28, "No space left on device")


def test_folders_files_and_links_are_removed_and_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    kept, away = tmp_path / "kept", tmp_path / "away"
    (kept / "inside").mkdir(parents=True)
    (away / "folder" / "inside").mkdir(parents=True)
    (away / "file").touch()
    (away / "link").symlink_to(kept)
    (away / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "file", "link", "broken", "not there"):
        remove(away / name)
    assert not any(away.iterdir()) and (kept / "inside").is_dir()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_an_fsync_that_is_not_supported_is_skipped(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with replacing(tmp_path / "file") as partial:
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_fsync_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with (
        pytest.raises(DistillError, match=r"cannot be written: .*Input/output error"),
        replacing(tmp_path / "f") as part,
    ):
        part.write_text("whole")
