"""README.md and the pages of examples/ do what they say: their blocks are run as they stand, without network.

A comment before a block says what else is to be done with it: `<!-- not run: WHY -->` reads it only, `<!-- slow: WHY
-->` runs it with --runslow only, `<!-- file: NAME -->` writes it. The blocks of a page are run one after the other, in
a folder with what `examples/README.md` makes.
"""

import importlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torchvision
from lightly.data import LightlyDataset
from torch import nn

from lightly_distill import SyntheticSet
from lightly_distill.cli.main import COMMANDS, build_parser, main
from lightly_distill.models import encoders

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONTENTS = ROOT / "examples" / "README.md"
PAGES = sorted(set((ROOT / "examples").glob("*.md")) - {CONTENTS})
BLOCK = re.compile(r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON, CONSOLE = "python", "console"

# What README.md shows is meant for real images; these make it small enough for the ones here.
SMALLER = {
    'target=model, student="resnet18", num_images=1000': "target=model, student='resnet18', num_images=10, steps=2, "
    "batch_size=32, pool={'size': 2, 'max_age': 3}",
    '"mobilenetv3_small_100", synthetic': '"mobilenetv3_small_100", synthetic, steps=2',
}
SMALLER_COMMANDS = {
    "distill": "--num-images 10 --steps 2 --batch-size 32 --pool.size 2 --pool.max-age 3",
    "pretrain": "--steps 2",
    "evaluate": "--baselines scratch --labels 50 --pretrain-steps 2 --seeds 1",
}


class Block(NamedTuple):
    """A fenced block: what it is written in, its text, the line it starts at, and the comment before it."""

    language: str
    text: str
    line: int
    mark: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = [
        Block(match["language"], match["text"], text[: match.start("text")].count("\n"), match["mark"] or "")
        for match in BLOCK.finditer(text)
    ]
    assert len(found) * 2 == len(re.findall("^```", text, re.MULTILINE)), f"a block of {page.name} has no end"
    return found


def commands(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def run_page(
    page: Path, names: dict[str, Any] | None = None, more: dict[str, str] | None = None, *, slow: bool = False
) -> None:
    """Runs the blocks of a page in the working directory.

    Args:
        page: The page.
        names: What Python finds at the start; it goes on with the names of the blocks before.
        more: Command of ours to options that are appended to it.
        slow: Run slow blocks too.
    """
    scope = {"__name__": page.stem, **(names or {})}
    for block in blocks(page):
        what, _, value = block.mark.partition(": ")
        assert what in ("", "not run", "slow", "file"), f"{page.name}, line {block.line}: unknown comment {block.mark}"
        if what == "file":
            Path(value).write_text(block.text)
        elif what == "not run" or (what == "slow" and not slow):
            read(block, page)
        elif block.language == PYTHON:
            exec(compiled(block, page), scope)
        elif block.language == CONSOLE:
            for words in commands(block.text):
                run_command([*words, *shlex.split((more or {}).get(words[1], ""))])


def run_command(words: list[str]) -> None:
    if words[0] == "lightly-distill":
        assert main(words[1:]) == 0, shlex.join(words)
    elif words == ["pip", "install", "."]:  # beside our own environment, which stays as it is
        install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", "site", "."]
        subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=120)
        importlib.invalidate_caches()
    else:
        pytest.fail(f"this test does not run {shlex.join(words)}; mark its block <!-- not run: WHY -->")


def read(block: Block, page: Path) -> None:
    """Checks a block that is not run as far as can be: Python is Python, and options are known."""
    if block.language == PYTHON:
        compiled(block, page)
    for words in commands(block.text) if block.language == CONSOLE else []:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
            continue
        if words[0] == "accelerate":
            words = words[words.index("lightly_distill") :]
        build_parser().parse_args(words[1:])


def compiled(block: Block, page: Path) -> Any:
    return compile("\n" * block.line + block.text, page, "exec")


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the table of contents makes."""
    folder = tmp_path_factory.mktemp("laid")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LIGHTLY_DISTILL_DATA", raising=False)
        patch.setattr(socket, "getaddrinfo", _no_network)
        run_page(CONTENTS)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def place(laid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of that kind for one page."""
    folder = tmp_path / "place"
    shutil.copytree(laid, folder, copy_function=_copy)
    monkeypatch.chdir(folder)
    (folder / "site").mkdir()
    monkeypatch.syspath_prepend(folder / "site")  # where a page installs an adapter
    monkeypatch.setattr(encoders, "_registered", {})
    monkeypatch.delenv("LIGHTLY_DISTILL_DATA", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)
    return folder


def _no_network(host: Any, *_: Any, **__: Any) -> Any:
    raise socket.gaierror(f"these tests have no network, not to {host} either")


def _copy(source: str, target: str) -> str:
    """Large weights are not written again for each page."""
    return str(os.link(source, target) or target) if source.endswith(".safetensors") else shutil.copy(source, target)


def test_the_table_of_contents_makes_images_and_a_first_set(laid: Path) -> None:
    assert len(list((laid / "photos").iterdir())) == 200
    assert sorted(path.name for path in (laid / "digits").iterdir()) == ["test", "train"]
    assert len(SyntheticSet.load(laid / "runs" / "photos")) == 20


def test_a_run_leaves_what_its_page_lists(laid: Path) -> None:
    (tree,) = (block.text for block in blocks(ROOT / "examples" / "in_python.md") if block.language == "text")
    listed = set(re.findall(r"^    ([\w.]+)", tree, re.MULTILINE))
    found = {path.name for path in (laid / "runs" / "photos").iterdir() if not path.name.startswith(".")}
    assert listed == found | {"trackers"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_as_they_stand(page: Path, place: Path) -> None:
    run_page(page)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "<!-- slow" in page.read_text()], ids=lambda page: page.stem
)
def test_the_slow_blocks_of_a_page_run_too(page: Path, place: Path) -> None:
    run_page(page, slow=True)


def test_the_first_lines_of_the_readme_run(place: Path, tmp_path: Path) -> None:
    text = README.read_text()
    for old, new in SMALLER.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    smaller = tmp_path / "README.md"
    smaller.write_text(text)
    shutil.rmtree("runs")
    shutil.copytree("digits", "birds")
    resnet = torchvision.models.resnet18()
    model = nn.Sequential(*list(resnet.children())[:-1])
    run_page(smaller, {"model": model, "dataset": LightlyDataset("photos")}, SMALLER_COMMANDS)


def test_every_option_is_on_the_page_of_options_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "examples" / "options.md").read_text()
    options = {}
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        options[command] = set(re.findall(r"^  (?:-h, )?(--[\w.-]+)", capsys.readouterr().out, re.MULTILINE))
    every = set().union(*options.values())
    assert named_options(page) == every
    sections = dict(section.split("\n", 1) for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:])
    for command in ("distill", "pretrain", "evaluate", "publish"):
        assert options[command] - named_options(sections[command]) == {"--help", "--debug"}, command


def named_options(text: str) -> set[str]:
    return set(re.findall(r"(?<=[`\s])(--[a-z][\w.-]*)", text))


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in (README, CONTENTS, *PAGES, ROOT / "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not link.startswith("http"):
                file, _, heading = link.partition("#")
                target = page.parent / file if file else page
                assert target.exists(), f"{page.name}: {link}"
                if heading:
                    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                    assert heading in [anchor(text) for text in headings], f"{page.name}: {link}"


def anchor(heading: str) -> str:
    """Returns the name under which GitHub lets one link to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
