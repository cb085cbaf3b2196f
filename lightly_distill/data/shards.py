"""Tar shards as WebDataset writes them: files of one name, such as 0001.jpg and 0001.json, are a sample."""

import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightly_distill.errors import DistillError, UsageError, first_line

COMPRESSED = (".tar.gz", ".tgz")
_LABEL = "cls"  # ending of a file that holds a label


class TarShards:
    """The samples of tar shards, by index: only the ends of files are known, and a sample is read when it is asked for.

    Samples are mappings from ending to content, such as `{"jpg": b"...", "json": b"..."}`, whatever endings each has.
    Any thread or process may read them.

    Args:
        files: The shards, in order.
        split: Of the source, that they are.

    Raises:
        UsageError: If a file is no tar archive, or breaks off, or there is no sample.
    """

    def __init__(self, files: Sequence[str], split: str | None = None) -> None:
        self._files, self.split = list(files), split
        self._endings: list[str] = []
        # a list of tuples would take ten times the memory
        self._first, self._shard = array("q"), array("q")
        self._places = {name: array("q") for name in ("ending", "start", "size")}
        known: dict[str, int] = {}
        for number, file in enumerate(self._files):
            before = None
            for member, name, ending in _members(file):
                if name != before:
                    self._first.append(len(self._places["size"]))
                    self._shard.append(number)
                    before = name
                if ending not in known:
                    known[ending] = len(known)
                    self._endings.append(ending)
                values = (known[ending], member.offset_data, member.size)
                for column, value in zip(self._places.values(), values, strict=True):
                    column.append(value)
        self._first.append(len(self._places["size"]))
        if not self._shard:
            raise UsageError(
                f"The shard '{self._files[0]}' holds no files with endings, such as 0001.jpg and 0001.json."
            )

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self._shard)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a sample."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        files: dict[str, bytes] = {}
        with open(self._files[self._shard[index]], "rb") as shard:
            for place in range(self._first[index], self._first[index + 1]):
                ending, start, size = (column[place] for column in self._places.values())
                shard.seek(start)
                files[self._endings[ending]] = shard.read(size)
        return _sample(files)


class TarStream:
    """The samples of tar shards of which some are compressed, from the front.

    Args:
        files: The shards, in order.
        split: Of the source, that they are.
    """

    def __init__(self, files: Sequence[str], split: str | None = None) -> None:
        self._files, self.split = list(files), split

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields each sample as `TarShards` gives it.

        Raises:
            DistillError: If a file is no tar archive, or breaks off.
        """
        for file in self._files:
            name, sample = "", dict[str, bytes]()
            try:
                with tarfile.open(file, "r|*") as archive:
                    for member, own, ending in _files_in(archive):
                        if own != name and sample:
                            yield _sample(sample)
                            sample = {}
                        content = archive.extractfile(member)
                        name, sample[ending] = own, content.read() if content is not None else b""
            except (tarfile.TarError, OSError, EOFError) as error:
                raise DistillError(f"The shard '{file}' cannot be read: {first_line(error)}") from error
            if sample:
                yield _sample(sample)


def open_shards(files: Sequence[str], split: str) -> TarShards | TarStream:
    """Opens shards: with an index, unless one is compressed."""
    kind = TarStream if any(file.lower().endswith(COMPRESSED) for file in files) else TarShards
    return kind(files, split)


def _members(file: str) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    try:
        with tarfile.open(file, "r:") as archive:
            yield from _files_in(archive)
            end = archive.offset
        with open(file, "rb") as content:
            content.seek(end)
            if any(content.read(tarfile.BLOCKSIZE)):  # an archive ends in zeros; tarfile stops at any other block too
                raise tarfile.ReadError(f"its header at byte {end:,} is damaged")
    except (tarfile.TarError, OSError) as error:  # damaged, or cut off
        raise UsageError(f"The shard '{file}' cannot be read: {first_line(error)}") from error


def _files_in(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Yields each file with its name and ending, which begins at the first dot."""
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # it would keep them all
        folder, _, last = member.name.rpartition("/")
        name, dot, ending = last.partition(".")
        if member.isfile() and name and dot:
            yield member, f"{folder}/{name}", ending.lower()


def _sample(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Returns the files of a sample, and its label where one of them holds it."""
    text = files.get(_LABEL, b"").decode(errors="replace").strip()
    return {**files, **({"label": int(text) if text.lstrip("-").isdigit() else text} if text else {})}
