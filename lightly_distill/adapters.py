"""What an adapter offers, and how it is found: by entry point, none imported before it is asked for.

An adapter is a module (or an object) with the functions of one of the protocols below. A third party adds its own by
declaring an entry point in the group `lightly_distill.targets`, `.students`, `.sources` or `.hubs`.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from lightly_distill.errors import DistillError

_OURS = "lightly_distill_integrations."

_logger = logging.getLogger(__name__)

# A model and images (B, 3, H, W), to what the model returns and, from the same pass, its last map (B, C, h, w).
MapReader = Callable[[Any, Tensor], tuple[Any, Tensor]]


class FoundEncoder(NamedTuple):
    """The encoder inside a model.

    Attributes:
        encoder: Maps images to `(B, d)`, a map `(B, d, H, W)` or tokens `(B, N, d)`. Attributes `mean`, `std`
            (sequences of 3 floats) and `input_size` (pixels), if any, are the normalisation and the only size that it
            expects; where it takes any size, `own_size` is the one that it was made for. `crop` (a fraction of an
            image's shorter side) and `interpolation` (`bicubic` or `bilinear`) say how images were shown to it.
        path: Attribute path inside the model, such as `teacher.backbone`; empty for the model itself.
        reason: Why it is this one, in a few words.
    """

    encoder: "nn.Module | Callable[[Tensor], Any]"
    path: str
    reason: str


class TargetAdapter(Protocol):
    """Brings target models of one library.

    It may also have a function `find_map(model) -> MapReader | None`, for models whose last map before their global
    pooling does not show in what their modules take and return; see `models/maps.py`. None stands for a model that
    is not this library's.
    """

    def load(self, spec: str) -> nn.Module:
        """Returns the model that stands after `NAME:` in a target specification, with its weights."""
        ...

    def find_encoder(self, model: nn.Module) -> FoundEncoder | None:
        """Returns the encoder inside `model`, or None if the model is not this library's. Must not change `model`."""
        ...


class StudentFacts(NamedTuple):
    """What a student is at one image size: its number of parameters, and of features, p."""

    parameters: int
    features: int


class StudentAdapter(Protocol):
    """Builds student backbones of one library. `name` is what stands after `ADAPTER:`, with the library's options.

    It may also have a function `find_map`, as a `TargetAdapter`; `configure(model, metadata)`, which notes size and
    normalisation of the set in a trained model, as the library does; `metadata` is that of `save`; and
    `check_name(name)`, which raises a UsageError for a name that `build` would not know, at any size.
    """

    def build(self, name: str, image_size: int) -> nn.Module:
        """Returns a freshly initialised backbone, images `(B, 3, image_size, image_size)` to features `(B, p)`.

        Draws its weights from torch's global generator, which the caller seeds.
        """
        ...

    def list_students(self, image_size: int, pattern: str) -> dict[str, StudentFacts | None]:
        """Returns the names that match a pattern with `*` and `?`; None for one that takes no images of this size."""
        ...

    def save(self, model: nn.Module, folder: str, metadata: dict[str, Any]) -> None:
        """Writes `model.safetensors` and the library's own `config.json` into an existing folder."""
        ...

    def how_to_load(self, model: nn.Module, name: str, folder: str) -> str:
        """Returns the lines of Python that bring back what `save` wrote."""
        ...

    def how_to_load_from_hub(self, name: str, repo_id: str) -> str:
        """Returns the lines of Python that load it from a model repository on the Hugging Face Hub."""
        ...


class SourceAdapter(Protocol):
    """Opens real images."""

    def open(self, spec: str, split: str | None) -> Any:
        """Returns an indexable, sized dataset for a source specification, or None if it is not of this kind."""
        ...


class Repository(NamedTuple):
    """What stands in a repository before something is sent.

    Attributes:
        card: Its README.md, None if there is none.
        files: Names of all files; empty if there is no such repository yet.
        commit: Its newest commit, None if there is none.
    """

    card: str | None
    files: tuple[str, ...]
    commit: str | None


class Sent(NamedTuple):
    """Where it is now: `url` of the repository or pull request, its `commit`, and whether anything `changed`."""

    url: str
    commit: str
    changed: bool


class HubAdapter(Protocol):
    """Fetches sets from a hub, and sends sets and students to it. Each failure is a DistillError of one line."""

    def check_token(self) -> None:
        """Asks the hub who the user is, before any long work."""
        ...

    def look_at(self, repo_id: str, kind: Literal["dataset", "model"], revision: str | None) -> Repository:
        """Returns what stands in a repository that is to be written to; refuses one that holds something else."""
        ...

    def send(
        self,
        folder: Path,
        repo_id: str,
        kind: Literal["dataset", "model"],
        before: Repository,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        message: str,
    ) -> Sent:
        """Sends a folder as one commit, unless the repository has changed since `before`."""
        ...

    def fetch_set(self, repo_id: str, revision: str | None) -> tuple[Path, str]:
        """Returns the folder of a set that was fetched and checked, and the commit it is of."""
        ...

    def publish(self, synthetic: Any, repo_id: str, options: Any) -> Any:
        """Publishes a set by its `PublishOptions`; see `sharing/publish.py`."""
        ...


Group = Literal["targets", "students", "sources", "hubs", "callbacks"]


def available(group: Group) -> dict[str, EntryPoint]:
    """Returns the declared adapters of a group by name, without importing them."""
    return _declared(group, tuple(sys.path))


@cache  # a search reads the metadata of all that is installed in these places, which takes 10 ms
def _declared(group: Group, places: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"lightly_distill.{group}")}


def installed(group: Group) -> Iterator[Any]:
    """Yields the adapters of a group, third parties' first, as they know their models best; ours by name.

    One that cannot be imported is passed over with a warning: it is no reason to refuse the models of others.
    """
    entries = available(group)
    for name in sorted(entries, key=lambda name: (entries[name].value.startswith(_OURS), name)):
        try:
            yield get(group, name)
        except DistillError as error:
            _logger.warning("%s", error)


def get(group: Group, name: str) -> Any:
    """Imports one adapter.

    Args:
        group: `targets`, `students`, `sources`, `hubs` or `callbacks`.
        name: Name of the entry point, such as `timm`.

    Raises:
        DistillError: If no such adapter is declared, or its library cannot be imported.
    """
    entries = available(group)
    if name not in entries:
        raise DistillError(f"No adapter '{name}' for {group}. Installed: {', '.join(sorted(entries)) or 'none'}.")
    try:
        return entries[name].load()
    except Exception as error:  # an ImportError, or whatever a third party's module raises
        raise DistillError(f"The adapter '{name}' for {group} cannot be imported: {error}") from error
