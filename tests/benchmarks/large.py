"""How fast the target's representations of a large folder of JPEGs are computed, against decoding and target alone.

    LIGHTLY_DISTILL_DATA=... python tests/benchmarks/large.py [--images 2000] [--model resnet18] [--target-size 224]

Photographs of tinyimagenet100-64 are enlarged to 224 to 500 pixels and written as JPEGs to a temporary folder, or to
--folder DIR, where they stay; up to 100,000 of them. The target has random weights. Decoding and target share the
cores, of which torch is given all but one; the slower of the two is the limit of the pass that does both at once. Of
many images, --limits-every 20 measures the two limits on each twentieth part only.
"""

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import timm
import torch
from PIL import Image

from lightly_distill.data.source import open_source
from lightly_distill.method.sight import Sight, find_for_target
from lightly_distill.models.targets import as_target, represent
from lightly_distill.runtime.seeding import generator

MEBIBYTE = 2**20


def main() -> None:
    """Makes the folder, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--target-size", type=int, default=224)
    parser.add_argument("--turn", type=int, default=500, help="images that each of the three is given in turn")
    parser.add_argument("--limits-every", type=int, default=1, help="the limits are measured in each so-manieth turn")
    parser.add_argument("--folder", type=Path, help="of the JPEGs; by default a temporary one")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))

    with tempfile.TemporaryDirectory() as temporary:
        place = str(options.folder or temporary)
        make(Path(place), options.images)
        torch.manual_seed(0)
        target = as_target(timm.create_model(options.model, num_classes=0)).to(options.device)
        sizes = {"image_size": options.image_size, "target_size": options.target_size}
        found, frame = find_for_target(place, target, **sizes)
        started = time.perf_counter()
        source = open_source(found)
        first = len(source) / (time.perf_counter() - started)
        print(f"decoding at {options.image_size} pixels, once: {first:.0f} images a second")

        sight, device = Sight(source, frame), torch.device(options.device)
        shown = next(sight.images(sight.chunks(torch.arange(len(source)))[:1]))
        represent(target, [shown[:4]], device=device)  # the first call is slower
        process = psutil.Process()
        resident = [process.memory_info().rss]
        seconds, compared, whole = dict.fromkeys(("decoding", "target", "ours"), 0.0), 0, 0.0
        # in turns, so that other work on the machine slows all three alike
        for turn, part in enumerate(torch.arange(len(source)).split(options.turn)):
            spent = timed(partial(sight.represented, target, part, device))
            whole += spent
            resident.append(process.memory_info().rss)
            if turn % options.limits_every:
                continue
            chunks = sight.chunks(part)
            given = [shown[: len(chunk)] for chunk in chunks]
            compared += len(part)
            seconds["ours"] += spent
            seconds["decoding"] += timed(partial(deque, sight.images(chunks), 0))
            seconds["target"] += timed(partial(represent, target, given, device=device))
    decoding, alone, ours = (compared / spent for spent in seconds.values())
    print(f"decoding alone at {options.target_size} pixels: {decoding:.0f} images a second")
    print(f"{options.model} alone at {options.target_size} pixels: {alone:.0f}")
    print(f"representations at the same time: {ours:.0f}, {ours / min(decoding, alone):.2f} of the slower one")
    print(f"all {len(source)} images: {len(source) / whole:.0f} a second")
    start, first, *_, end = (size / MEBIBYTE for size in [*resident, resident[-1]])
    print(f"resident memory: {start:.0f} MiB at the start, {first:.0f} after the first turn, {end:.0f} at the end")


def make(folder: Path, count: int) -> None:
    """Writes JPEGs of 224 to 500 pixels a side, in folders of 1,000."""
    small = open_source("tinyimagenet100-64#train")
    draw = generator(0, "large")
    for number in range(count):
        width, height = (int(side) for side in torch.randint(224, 501, (2,), generator=draw))
        pixels = small.read(torch.tensor([number % len(small)]))[0].permute(1, 2, 0).numpy()
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def timed(work: Callable[[], object]) -> float:
    """Returns how many seconds it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
