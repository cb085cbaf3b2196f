"""What is shipped: each module and each template, and nothing that only tests need."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT, ROOT / "integrations")


def shipped(source: Path) -> set[str]:
    """The files of the packages below a source root."""
    files = (path.relative_to(source) for package in source.glob("lightly_distill*") for path in package.rglob("*"))
    return {path.as_posix() for path in files if path.suffix in (".py", ".j2", ".typed")}


def test_a_wheel_holds_each_module_and_each_template(tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # building writes beside the sources
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("lightly_distill", "integrations"):
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == set().union(*map(shipped, SOURCES))
    assert {"evaluation_report.html.j2", "sweep_report.md.j2", "card.md.j2", "student_card.md.j2", "py.typed"} <= {
        name.rpartition("/")[2] for name in held
    }
