"""What `import lightly_distill` gives, and what it costs."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lightly_distill

# What importing may load besides the standard library, and what these load themselves.
QUICK = ("PIL", "filelock", "numpy", "psutil", "pyarrow", "safetensors", "torch", "tqdm", "typing_extensions", "yaml")


def test_dir_shows_the_public_names_and_each_is_there() -> None:
    assert dir(lightly_distill) == sorted(lightly_distill.__all__)
    assert all(getattr(lightly_distill, name) is not None for name in lightly_distill.__all__)
    with pytest.raises(AttributeError, match="module 'lightly_distill' has no attribute 'distil'"):
        lightly_distill.distil  # noqa: B018


def test_no_public_name_hides_a_module() -> None:
    folder = Path(lightly_distill.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not modules & set(lightly_distill.__all__)


def test_what_a_type_checker_sees_is_what_there_is() -> None:
    tree = ast.parse(Path(lightly_distill.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module or "" for node in imports for alias in node.names}
    assert set(lightly_distill.__all__) <= set(seen)
    for name in lightly_distill.__all__:
        assert getattr(importlib.import_module(seen[name]), name) is getattr(lightly_distill, name)


def test_importing_loads_only_what_is_quick() -> None:
    code = (
        f"import sys, json, importlib; [importlib.import_module(name) for name in {QUICK!r}]; before = set(sys.modules)"
        "; import lightly_distill; print(json.dumps(list(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)} - set(sys.stdlib_module_names)
    # others are parts of these packages that they load when asked for, or compiled helpers of theirs
    assert {name for name in loaded if not name.startswith("_")} <= {"lightly_distill", *QUICK}
