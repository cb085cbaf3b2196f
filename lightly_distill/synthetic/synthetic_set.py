"""The result: synthetic images, a target representation of each, and where they come from."""

from pathlib import Path

from torch import Tensor
from typing_extensions import Unpack

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.runtime.settings import choose
from lightly_distill.synthetic import address, artifact
from lightly_distill.synthetic.address import Published, PublishKeywords, PublishOptions
from lightly_distill.synthetic.contents import Contents


class SyntheticSet(Contents):
    """A small set of learned images, each with a learned target representation.

    Args:
        images: Shape (m, 3, H, W): uint8 pixels, of a set of 8 bits (format 2), or float32 in normalised pixel space,
            unbounded (format 1).
        representations: float32, shape (m, d).
        mean: Of each channel in units of [0, 1]; a model that was trained on the set expects images normalised so.
        std: As `mean`.
        maps: float32, shape (m, C, g, g): what the target sees in each cell of an image; None where there are none.
        files: Of a set of 8 bits, the images as they are stored; see `Contents`.
        scales: Of a set of 8 bits, shape (d + C,); see `Contents`.
        source_index: Index of the real image that each started from, int64, shape (m,); -1 where it was noise.
        provenance: JSON-able: source, target, configuration, versions, losses, cost.
        metrics: JSON-able: measured results.
        projection: By which the target's representations became those of the set; None where these are its own, or the
            way back is not kept. See `original_representations`.
        map_projection: The same, of each cell of the target's map. See `original_maps`.

    Attributes:
        origin: Where it was loaded from on the Hugging Face Hub, `OWNER/NAME@COMMIT`; empty for any other set.

    Raises:
        UsageError: If shapes or types do not fit, or a number is not finite.
    """

    origin: str = ""

    def __repr__(self) -> str:
        count, channels, height, width = self.images.shape
        return f"SyntheticSet({count} images {channels}x{height}x{width}, representations of {self.dim})"

    def part(self, indices: Tensor) -> "SyntheticSet":
        """Returns some of the images with their targets, in this order; the record is left out."""
        return SyntheticSet(
            self._kept[indices],
            self.representations[indices],
            maps=None if self.maps is None else self.maps[indices],
            files=None if self.files is None else [self.files[index] for index in indices.tolist()],
            scales=self.scales,
            mean=self.mean,
            std=self.std,
            source_index=self.source_index[indices],
            projection=self.projection,
            map_projection=self.map_projection,
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the set as a folder, which is also the layout of a Hugging Face dataset.

        Args:
            folder: New or empty folder.
            overwrite: Replace the set that is there. It stays whole until the new one is complete.

        Returns:
            The folder.

        Raises:
            UsageError: If the folder is taken, or the provenance or metrics are not JSON.
            DistillError: If the set cannot be written; no partial folder stays.
        """
        return artifact.write(self, Path(folder), overwrite=overwrite)

    @classmethod
    def load(cls, place: str | Path, *, revision: str | None = None) -> "SyntheticSet":
        """Reads what `save` or `push_to_hub` wrote, bit for bit, and checks it. No code of a set is ever run.

        Args:
            place: The folder of a set, or the output folder of a run, which holds the set under `set`. Where there is
                no such folder, `OWNER/NAME` or `OWNER/NAME@REVISION` on the Hugging Face Hub; what was fetched once
                is there without network too.
            revision: Branch, tag or commit on the Hub.

        Raises:
            UsageError: If there is no set.
            DistillError: If the set is damaged, or of a newer format, or the Hub fails.
        """
        fetched, origin = address.local_folder(place, revision)
        folder = artifact.find(fetched)
        try:
            loaded = cls(**artifact.read(folder))
        except UsageError as error:  # not the user's tensors: a file with the right hash and impossible numbers
            raise DistillError(f"{folder} holds no synthetic set: {error}") from error
        loaded.origin = origin
        return loaded

    def push_to_hub(
        self, repo_id: str, options: PublishOptions | None = None, **keywords: Unpack[PublishKeywords]
    ) -> Published:
        """Publishes the set as a dataset repository on the Hugging Face Hub, in one commit; see `sharing/publish.py`.

        Args:
            repo_id: `OWNER/NAME`; made if it is not there.
            options: All options at once, instead of keywords.
            keywords: Fields of `PublishOptions`, such as `license="cc-by-4.0"`.

        Example:
            >>> synthetic = stage.run(dataset)
            >>> synthetic.push_to_hub("me/cifar10-simclr-1k", license="cc-by-4.0", data=dataset, target=model)

        Raises:
            UsageError: If an argument is wrong, or images are near copies of real ones and that is not accepted.
            DistillError: If the Hub refuses or fails, in one line that says what to do.
        """
        chosen = choose(options, PublishOptions(), keywords)
        hub, _ = address.find_hub(repo_id)
        published: Published = hub.publish(self, repo_id, chosen)
        return published
