"""The real client of the Hub in a process of its own, which is told where the Hub is before it imports anything.

One process serves a whole module of tests, as importing takes longer than any of them.
"""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from local_hub import LocalHub

ROOT = Path(__file__).parent.parent


class Result(NamedTuple):
    """Of a command: its exit status and what it said; of Python, `status` 1 and the error if it failed."""

    status: int
    out: str
    err: str


class Client:
    """Runs commands of ours, or Python, in the process.

    Args:
        hub: Where it is.
        home: Folder of the client's cache.
    """

    def __init__(self, hub: LocalHub, home: Path) -> None:
        paths = [ROOT, ROOT / "integrations", ROOT / "tests"]
        environment = {
            **hub.environment(home),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def cli(self, *arguments: Any, token: str | None = "hf_write", folder: Path | None = None) -> Result:
        """Runs `lightly-distill ARGUMENTS` in a folder."""
        return self.answer(self.ask(*arguments, token=token, folder=folder))

    def python(self, code: str, token: str | None = "hf_write", **values: Any) -> Result:
        """Runs Python; `values` are there as names."""
        return self.answer(self._send({"code": code, "values": values, "token": token}))

    def ask(self, *arguments: Any, token: str | None = "hf_write", folder: Path | None = None) -> None:
        """Starts a command without waiting for it."""
        self._send({"cli": list(map(str, arguments)), "token": token, "folder": str(folder or ROOT)})

    def answer(self, _: None = None) -> Result:
        """Waits for the command that runs."""
        assert self._process.stdout is not None
        return Result(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()


def _serve() -> None:
    from huggingface_hub.utils import _http

    from lightly_distill.cli.main import main

    # the client waits 1, 2, 4, 8 and 8 seconds between its tries
    for name in ("http_backoff", "http_stream_backoff"):  # older clients have only the first
        retry = getattr(_http, name, None)
        if retry is not None:
            getattr(retry, "__wrapped__", retry).__kwdefaults__.update(base_wait_time=0.01, max_wait_time=0.01)
    answers = sys.stdout
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if request["token"]:
            os.environ["HF_TOKEN"] = request["token"]
        for handler in logging.getLogger().handlers[:]:  # of the command before, whose stderr is gone
            logging.getLogger().removeHandler(handler)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                if "cli" in request:
                    os.chdir(request["folder"])
                    status = main(request["cli"])
                else:
                    exec(request["code"], {**request["values"]})
                    status = 0
            except Exception as error:
                status = 1
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
        print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
