"""Reads the pages and tables of reports, and opens them in a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

NASTY = "<script>alert(1)</script>|x\ny`z`[a](b)\x1b[31m $\\frac{ \ud800"
FRAME = """<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0">
<iframe width="{width}" height="2000" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe"), inside = frame.contentDocument, root = inside.documentElement;
  const images = [...inside.images].map(image => {{
    const place = image.getBoundingClientRect(), canvas = document.createElement("canvas");
    const pen = canvas.getContext("2d");
    canvas.width = canvas.height = 200;
    if (image.naturalWidth) pen.drawImage(image, 0, 0, 200, 200);
    const colours = new Set(new Uint32Array(pen.getImageData(0, 0, 200, 200).data.buffer));
    return {{natural: image.naturalWidth, width: place.width, right: place.right, colours: colours.size}};
  }});
  const boxes = [...inside.querySelectorAll(".box")].map(box => box.getBoundingClientRect().right);
  const hidden = [...inside.querySelectorAll(".box:has(.facts)")].map(box => box.scrollWidth - box.clientWidth);
  const seen = {{images, boxes, hidden, inner: frame.contentWindow.innerWidth, scroll: root.scrollWidth}};
  document.body.innerHTML = "<pre id=seen>" + JSON.stringify(seen) + "</pre>";
}});
</script>
"""


class Parser(HTMLParser):
    """Keeps tags, attributes and text, and complains about tags that are not closed in their order."""

    VOID = ("meta", "img", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] += data

    def images(self) -> list[str]:
        return [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]


def markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip().strip("*") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is installed")
    return found


def opened(file: Path, width: int) -> dict[str, Any]:
    """Opens a page in a browser without network and returns what is seen of it."""
    frame = file.with_name(f"frame{width}.html")
    frame.write_text(FRAME.format(width=width, page=html.escape(file.read_text("utf-8"))), encoding="utf-8")
    # Nothing that starts it may wait for the network, its sandbox is not for root, and /dev/shm may be small.
    quiet = "--disable-background-networking --disable-component-update --no-first-run --disable-sync"
    options = f"--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars {quiet}".split()
    profile = f"--user-data-dir={file.with_name('profile')}"
    command = [browser(), *options, profile, f"--window-size={max(width, 500)},2000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.S)
    assert found, f"the browser said: {done.stdout[-500:]} {done.stderr[-2000:]}"
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen
