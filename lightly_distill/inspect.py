"""What a synthetic set is, in text."""

from pathlib import Path

from lightly_distill import artifact, card
from lightly_distill.synthetic import SyntheticSet


def describe(folder: Path) -> str:
    """Returns sizes, statistics, origin and pictures of a set, one fact a line.

    Args:
        folder: The folder of a set, or the output folder of a run.
    """
    synthetic = SyntheticSet.load(folder)
    folder = artifact.find(folder)
    count, channels, height, width = synthetic.images.shape
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    images, representations = synthetic.images, synthetic.representations
    visible = (synthetic.displayable() % 255 != 0).float().mean()
    lines = {
        "images": f"{count} of {channels}x{height}x{width}, float32, normalised "
        f"(mean {images.mean():.3f}, std {images.std(correction=0):.3f}, {images.min():.2f} to {images.max():.2f})",
        "on a screen": f"{float(visible):.0%} of the values within what 8 bits can show",
        "representations": f"{synthetic.dim} numbers each (mean {representations.mean():.3f}, "
        f"std {representations.std(correction=0):.3f})",
        "started from": f"{int((synthetic.source_index >= 0).sum())} real images, "
        f"{int((synthetic.source_index < 0).sum())} of noise",
        "normalisation": f"mean {synthetic.mean}, std {synthetic.std}",
        "on disk": f"{size / 1e6:.2f} MB in {folder}",
        **card.facts(synthetic),
        **{f"measured {name}": str(value) for name, value in synthetic.metrics.items()},
        "pictures": str(folder / "preview.png"),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
