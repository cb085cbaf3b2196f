"""Scripts that run as several processes on this machine, joined by gloo, as a launcher starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PATHS = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"


def start(script: str, arguments: Any = None, count: int = 2, **environment: str) -> list[subprocess.Popen[str]]:
    """Starts the same script as several processes; `arguments` are JSON in `sys.argv[1]`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PATHS + script, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
        )
        for rank in range(count)
    ]


def finish(children: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Returns exit status, output and errors of each."""
    told = [child.communicate(timeout=120) for child in children]
    return [(child.returncode, *each) for child, each in zip(children, told, strict=True)]
