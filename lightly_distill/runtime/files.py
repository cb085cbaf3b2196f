"""Files that are whole or not there, whatever stops the program while it writes them."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from safetensors import SafetensorError

from lightly_distill.errors import DistillError, UsageError, first_line

# what file systems say that have no such thing: network shares, and some that containers see
NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EBADF})
PARTIAL = ".partial"  # ends the name of a file that is being written; one that stays is of a killed run


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says against writing into a DistillError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DistillError(f"{path} cannot be written: {first_line(error)}") from error


def below(folder: Path, name: str) -> str:
    """Returns the end of a message about a folder without a file: where below it there are such, as in a sweep's."""
    found = (path.parent for depth in range(1, 4) for path in folder.glob("*/" * depth + name))
    nearest = sorted(str(path) for path in islice(found, 3))
    return f" Below it there are some: {', '.join(nearest)}." if nearest else ""


@contextlib.contextmanager
def replacing(path: Path, apart: str = "") -> Iterator[Path]:
    """Gives the name of a file to write, which takes the place of `path` when the block is done.

    Args:
        path: The file.
        apart: Tells this writer from others of the same file at the same time.

    Raises:
        DistillError: If it cannot be written. The old file is intact and no partial one stays.
    """
    partial = path.with_name(f"{path.name}{apart}{PARTIAL}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            make_ordinary(partial)
            sync(partial)
            os.replace(partial, path)
        except BaseException:  # an interrupt too
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


def make_ordinary(path: Path) -> None:
    """Gives a file the mode of any new one: others may read it, as the mask says. That of safetensors is 0600."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def remove(path: Path) -> None:
    """Removes a folder with all that is in it, a file, or a link but not what it leads to; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until the disk has the file, or the names in the folder."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # has no such thing
        return
    try:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except OSError:
        if folder:  # some file systems do not open folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(folder: Path | None, *, occupied: bool = False) -> Iterator[Path | None]:
    """Gives a new folder, made before the long work, so that a place that cannot be written to is refused now.

    Args:
        folder: New or empty; removed if the block fails and leaves it empty. None: no folder.
        occupied: Whether there may be something in it.

    Raises:
        UsageError: If it cannot be made, or there is something in it.
    """
    if folder is None:
        yield None
        return
    new = not folder.exists()
    _make(folder, occupied)
    try:
        yield folder
    except BaseException:  # an interrupt too
        with contextlib.suppress(OSError):
            if new:
                folder.rmdir()  # which a folder that holds something refuses
        raise


def _make(folder: Path, occupied: bool) -> None:
    if not occupied and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"The output folder '{folder}' exists and is not empty. Give another, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The output folder '{folder}' cannot be made: {error}") from error
