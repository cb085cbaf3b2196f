"""Lightly's own scripts, where a checkout of Lightly is given by LIGHTLY_EXAMPLES: no training, no download.

git clone https://github.com/lightly-ai/lightly && LIGHTLY_EXAMPLES=$PWD/lightly pytest tests/integrations
"""

import ast
import importlib.util
import os
from pathlib import Path
from typing import Any

import lightly
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from lightly_distill.models.targets import as_target

CHECKOUT = Path(os.environ.get("LIGHTLY_EXAMPLES") or "absent")
SCRIPTS = sorted(CHECKOUT.glob("examples/pytorch*/*.py"))
BENCHMARKS = sorted(
    path
    for path in CHECKOUT.glob("benchmarks/imagenet/*/*.py")
    if path.stem not in ("main", "__init__") and not path.stem.endswith("_eval")
)
pytestmark = pytest.mark.skipif(not SCRIPTS, reason="needs a checkout of Lightly: set LIGHTLY_EXAMPLES to its folder")

ENCODERS = {
    **dict.fromkeys(("capi", "dino", "dinov2", "ibot"), "teacher_backbone"),
    "ijepa": "target_encoder",
    "directclr": "",
}
WIDTHS = {
    **dict.fromkeys(("aim", "ijepa", "mae", "simmim"), 768),
    **dict.fromkeys(("capi", "dinov2", "ibot", "lejepa", "msn", "pixio", "pmsn"), 384),
}
IMAGES = torch.rand(2, 3, 64, 64)


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_the_model_of_an_example_script_is_a_target(script: Path) -> None:
    model = model_of(script)
    if model is None:
        pytest.skip("the script is a placeholder without a model")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    target = as_target(model)
    result = target(IMAGES)
    assert result.shape == (2, WIDTHS.get(script.stem, 512))
    assert result.isfinite().all() and torch.equal(target(IMAGES), result)
    assert (result[0] - result[1]).abs().max() > 1e-6
    path = ENCODERS.get(script.stem, "backbone")
    assert target.encoder_name == ".".join(filter(None, (type(model).__name__, path)))
    representations, maps = target.maps(IMAGES, 2)
    assert torch.equal(representations, result) and maps.shape == (2, result.shape[1], 2, 2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("file", BENCHMARKS, ids=name_of)
def test_a_module_of_the_imagenet_benchmarks_is_represented_by_what_it_evaluates(file: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"lightly_benchmark_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kind: Any = next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, LightningModule) and value.__module__ == module.__name__
    )
    try:
        model = kind(batch_size_per_device=8, num_classes=10)
    except Exception as error:
        pytest.skip(f"the module itself fails with lightly {lightly.__version__}: {type(error).__name__}: {error}")
    target = as_target(model)
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = model.eval()((images - target._mean) / target._std)  # the benchmarks' forward is what they evaluate
    torch.testing.assert_close(target(images), expected.float())


def model_of(script: Path) -> nn.Module | None:
    """Runs a script's imports, classes and functions, and of its statements those that its `model` needs."""
    statements = _flat(ast.parse(script.read_text()).body)
    assignments = [node for node in statements if isinstance(node, ast.Assign)]
    goal = next((node for node in assignments if "model" in _assigned(node)), None)
    if goal is None:
        return None
    needed, run = _names(goal), [goal]
    for node in reversed(assignments[: assignments.index(goal)]):
        if _assigned(node) & needed:
            run.insert(0, node)
            needed |= set() if _is_loader(node) else _names(node)
    scope: dict[str, Any] = {"__name__": f"lightly_example_{script.stem}"}
    for node in statements:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.Try) or node in run:
            if node in run and _is_loader(node):  # would download its data; only its length is asked for
                scope.update(dict.fromkeys(_assigned(node), range(10)))
            else:
                _execute(node, script, scope)
        if node is goal:
            break
    model: nn.Module = scope["model"]
    return model


def _execute(node: ast.stmt, script: Path, scope: dict[str, Any]) -> None:
    try:
        exec(compile(ast.Module([node], []), str(script), "exec"), scope)
    except NameError:
        raise  # a statement too few was run
    except Exception as error:
        pytest.skip(f"the script itself fails with lightly {lightly.__version__}: {type(error).__name__}: {error}")


def _is_loader(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any("loader" in name for name in _assigned(node))


def _flat(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements of the script, with those under `if __name__ == "__main__":` in their place."""
    flat: list[ast.stmt] = []
    for node in body:
        is_main = isinstance(node, ast.If) and "__main__" in ast.dump(node.test)
        flat += _flat(node.body) if isinstance(node, ast.If) and is_main else [node]
    return flat


def _assigned(node: ast.Assign) -> set[str]:
    return {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
