"""Measures the shape of the code: python tests/benchmarks/structure.py [--ref COMMIT]

Rooms on the first level, modules, the largest circle of imports, the lengths of functions, and what `import
lightly_distill` takes. `--ref` measures another commit in a temporary copy, to compare with. Imports inside functions
and for types count.
"""

import argparse
import ast
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "lightly_distill"


def modules(root: Path) -> dict[str, Path]:
    """Returns the modules of the core and its adapters by dotted name."""
    found = {}
    for base in (root, root / "integrations"):
        for path in sorted(base.glob(f"{PACKAGE}*/**/*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """Yields the modules of ours that a module imports, wherever it does; not the package around another module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield whole
                elif node.module in known:
                    yield node.module


def largest_circle(graph: dict[str, set[str]]) -> int:
    """Returns the size of the largest set of modules that all reach each other; 1 where there is no circle."""

    def reach(start: str, edges: dict[str, set[str]]) -> set[str]:
        seen, stack = {start}, [start]
        while stack:
            for other in edges.get(stack.pop(), set()) - seen:
                seen.add(other)
                stack.append(other)
        return seen

    back: dict[str, set[str]] = {}
    for name, others in graph.items():
        for other in others:
            back.setdefault(other, set()).add(name)
    return max(len(reach(name, graph) & reach(name, back)) for name in graph)


def import_seconds(root: Path) -> tuple[float, int]:
    """Returns the cumulative seconds of `import lightly_distill`, the least of three, and how many modules it loads."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, root / "integrations")))}
    command = [sys.executable, "-X", "importtime", "-c", f"import {PACKAGE}, sys; print(len(sys.modules))"]
    seconds, count = [], 0
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=True)
        line = next(line for line in done.stderr.splitlines() if re.search(rf"\| {PACKAGE}$", line))
        seconds.append(int(line.split("|")[1]) / 1e6)
        count = int(done.stdout)
    return min(seconds), count


def measure(root: Path) -> None:
    """Prints the figures of a checkout."""
    known = modules(root)
    trees = {name: ast.parse(path.read_text()) for name, path in known.items()}
    graph = {name: set(imports(tree, known)) - {name} for name, tree in trees.items()}
    lengths = sorted(
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    lines = sorted((len(path.read_text().splitlines()), name) for name, path in known.items() if path.stat().st_size)
    numbers = [length for length, _ in lengths]
    core = root / PACKAGE
    folders = [path for path in core.iterdir() if (path / "__init__.py").exists()]
    files = [path for path in core.glob("*.py") if path.name != "__init__.py"]
    seconds, loaded = import_seconds(root)
    circle = largest_circle(graph)
    print(f"modules                      {len(known)}, {sum(map(len, graph.values()))} imports between them")
    print(f"first level of {PACKAGE} {len(folders)} folders, {len(files)} files")
    print(f"largest circle               {circle if circle > 1 else 'none'}")
    print(f"lines of a module            median {statistics.median([n for n, _ in lines]):.0f}, most {lines[-1]}")
    print(f"lines of a function          p90 {numbers[int(0.9 * len(numbers))]}, most {lengths[-1]}")
    print(f"import {PACKAGE}       {seconds:.2f} s, {loaded} modules loaded")


def main() -> None:
    """Measures this checkout, or another commit of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", help="A commit, instead of the working tree.")
    ref = parser.parse_args().ref
    if ref is None:
        measure(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "tree")
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(place), ref], cwd=ROOT, check=True)
        try:
            measure(place)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(place)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
