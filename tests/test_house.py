"""The floors of the house: `[tool.importlinter]` in pyproject.toml, and the charter in each folder's `__init__.py`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(place: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter on the tree in a folder, as `make test` does on ours."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    return subprocess.run(command, capture_output=True, text=True, cwd=place)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code that may be spoiled."""
    for name in ("lightly_distill", "integrations"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("lightly_distill/data/source.py", "def up() -> None:\n    from lightly_distill.runs import stage", "floors"),
        (
            "lightly_distill/models/targets.py",
            "if TYPE_CHECKING:\n    from lightly_distill.data import items",
            "floors",
        ),
        ("lightly_distill/runs/stage.py", "from lightly_distill_integrations import convnets", "adapters"),
        ("lightly_distill/data/decode.py", "from lightly_distill.data import source", "circles"),
        ("lightly_distill/attic/__init__.py", '"""A new room, on no floor."""', "floors"),
    ],
)
def test_what_breaks_the_house_is_seen(tree: Path, file: str, line: str, broken: str) -> None:
    path = tree / file
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + f"\nfrom typing import TYPE_CHECKING\n\n{line}\n")
    done = lint(tree)
    assert done.returncode != 0
    names = {
        "floors": "A folder imports only from floors below its own BROKEN",
        "adapters": "The core finds adapters by entry point BROKEN",
        "circles": "No circle, in no folder BROKEN",
    }
    assert names[broken] in done.stdout or "attic" in done.stdout + done.stderr, done.stdout + done.stderr


def test_the_house_as_it_is_stands(tree: Path) -> None:
    done = lint(tree)
    assert done.returncode == 0, done.stdout


def test_each_folder_has_a_charter() -> None:
    for path in [*(ROOT / "lightly_distill").rglob("__init__.py"), *(ROOT / "integrations").rglob("__init__.py")]:
        assert len(path.read_text().split()) > 8, path
