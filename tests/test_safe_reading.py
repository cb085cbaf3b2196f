"""Nothing is read in a way that could run its code: no pickle, on any path."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for part in ("lightly_distill", "integrations", "examples") for path in (ROOT / part).rglob("*.py")
)
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}


def unsafe(code: str) -> Iterator[str]:
    """Yields what in this code could run the code of a file."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in PICKLES)
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "yaml"):
                hidden = [
                    alias.name for alias in node.names if alias.name in LOADERS
                ]  # a bare `load` is not seen below
                yield from (f"line {node.lineno}: imports {name} by itself" for name in hidden)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            call = f"{node.func.value.id}.{node.func.attr}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if call == "torch.load" and given.get("weights_only") != "True":
                yield f"line {node.lineno}: {call} without weights_only=True"
            if given.get("allow_pickle", "False") != "False" or given.get("weights_only", "True") != "True":
                yield f"line {node.lineno}: {call} with pickle"
            if node.func.value.id == "yaml" and node.func.attr in LOADERS:
                yield f"line {node.lineno}: {call}, not safe_load"
            if node.func.attr == "read_pickle":
                yield f"line {node.lineno}: {call}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_is_read_with_pickle(path: Path) -> None:
    assert list(unsafe(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)",
        "torch.load('x', map_location='cpu')",
        "from torch import load",
        "np.load('x', allow_pickle=True)",
        "yaml.load('x', yaml.Loader)",
        "yaml.unsafe_load('x')",
        "pd.read_pickle('x')",
        "import joblib",
    ],
)
def test_the_check_sees_each_way(code: str) -> None:
    assert list(unsafe(code))


def test_the_check_lets_the_safe_ways_pass() -> None:
    code = "torch.load('x', weights_only=True)\nnp.load('x', mmap_mode='c')\nyaml.safe_load('x')\njson.load(file)"
    assert SOURCES and list(unsafe(code)) == []
