"""What an adapter offers. An adapter is a module (or an object) with these functions; see `integrations.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class FoundEncoder(NamedTuple):
    """The encoder inside a model.

    Attributes:
        encoder: Maps images to `(B, d)`, a map `(B, d, H, W)` or tokens `(B, N, d)`. Attributes `mean`, `std`
            (sequences of 3 floats) and `input_size` (pixels), if any, are the normalisation and the only size that it
            expects.
        path: Attribute path inside the model, such as `teacher.backbone`; empty for the model itself.
        reason: Why it is this one, in a few words.
    """

    encoder: "nn.Module | Callable[[Tensor], Any]"
    path: str
    reason: str


class TargetAdapter(Protocol):
    """Brings target models of one library."""

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
    """Builds student backbones of one library. `name` is what stands after `ADAPTER:`, with the library's options."""

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
