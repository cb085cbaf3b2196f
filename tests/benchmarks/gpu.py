"""All that a GPU is asked for, in three parts of less than 9 minutes, each with its JSON in DIR.

    python tests/benchmarks/gpu.py DIR [right|fast|good] [--device cuda] [--small] [--minutes 9]

right: all tests marked `gpu`, among them checks of exact resumption and of chunks, equality with the CPU and the plain
    reference, and steps that do not wait for the device.
fast: a step of the three presets and its phases, against the plain reference and against the least that the card could
    take (`roofline.py`), with an estimate of the whole run, and peak memory.
good: does it transfer? The GPU setting of `transfer/`.

Nothing that is in DIR already is made again: a part that was out of time goes on when it is given again, and its JSON
says `"done": true` at the end. `--device cpu --small` tries it all on a CPU and on little; those numbers mean nothing.
"""

import argparse
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import roofline
import step_time
import torch

from lightly_distill.method.config import PRESETS, DistillConfig, make_config
from lightly_distill.models.rows import Layout
from lightly_distill.runtime.device import device_name, tf32
from lightly_distill.runtime.files import replacing

HERE = Path(__file__).resolve().parent
WIDTH = 512  # of the target, ResNet-18
STEPS = 20
ENDING = 40  # seconds that the transfer setting has to stop in
LONGEST = 180  # seconds of one measurement: none is begun later than that before the end


class Part:
    """One part's JSON, written after each result.

    Args:
        folder: Of all parts.
        name: Of the part.
        options: Of the command line.
    """

    def __init__(self, folder: Path, name: str, options: argparse.Namespace) -> None:
        self.device, self.small = options.device, options.small
        self._end = time.monotonic() + 60 * options.minutes
        self._path = folder / f"{name}.json"
        device = torch.device(self.device)
        machine = {"device": device_name(device), "torch": torch.__version__, "tf32": tf32(device), "small": self.small}
        self.kept: dict[str, Any] = {"done": False, "machine": machine, "results": {}}
        if self._path.exists():
            self.kept = json.loads(self._path.read_text())
            if self.kept["machine"] != machine:
                raise SystemExit(f"{self._path} was measured on {self.kept['machine']}, this is {machine}.")

    @property
    def results(self) -> dict[str, Any]:
        """By name."""
        return self.kept["results"]  # type: ignore[no-any-return]

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def keep(self, name: str, result: Any) -> None:
        """Adds a result."""
        self.results[name] = result
        self.write()

    def write(self, **more: Any) -> None:
        """Writes what there is."""
        self.kept |= more
        with replacing(self._path) as partial:
            partial.write_text(json.dumps(self.kept, indent=2) + "\n")


class Tests:
    """A plugin of pytest that leaves out what has passed before, and stops when the time is over."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._part.results.get(item.nodeid) != "passed"]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self._part.left < 0:
            item.session.shouldstop = "out of time"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._part.keep(report.nodeid, report.outcome if report.outcome != "failed" else report.longreprtext)
            if report.user_properties:
                self._part.write(measured={**self._part.kept.get("measured", {}), **dict(report.user_properties)})


def right(part: Part, folder: Path) -> bool:
    """Runs the tests."""
    which = ["-m", "gpu"] if part.device == "cuda" else ["-m", "not gpu and not slow", "-k", "plain_reference"]
    where = [str(HERE.parent)] if part.device == "cuda" else [str(HERE.parent / "test_devices.py")]
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--runslow",
        "--rootdir",
        str(HERE.parents[1]),
        "-c",
        str(HERE.parents[1] / "pyproject.toml"),
    ]
    code = pytest.main([*options, *which, *where], plugins=[Tests(part)])
    return code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and bool(part.results)


def fast(part: Part, folder: Path) -> bool:
    """Measures each side of each preset in a process of its own, and compares."""
    steps, sides = (2, ["reference", "plain"]) if part.small else (STEPS, ["reference", *step_time.SIDES])
    for preset in PRESETS:
        for side in sides:
            if part.left < LONGEST and not part.small:
                return False
            if (name := f"{preset} {side}") not in part.results:
                work = measured if part.small else _in_a_process
                result = work(preset, side, steps, part.device, part.small)
                plain = part.results.get(f"{preset} reference", result)
                if "losses" in result and "losses" in plain:
                    pairs = zip(result["losses"], plain["losses"], strict=True)
                    result["loss_gap"] = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
                part.keep(name, result)
                _tell(name, part.results, preset)
    return True


def _in_a_process(*arguments: Any) -> dict[str, Any]:
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            return child.submit(measured, *arguments).result()
    except Exception as error:  # one that has no memory does not keep the others from being measured
        return {"error": f"{type(error).__name__}: {error}"}


def measured(preset: str, side: str, steps: int, device: str, small: bool) -> dict[str, Any]:
    """Measures one side: seconds, phases, the least of the card, the whole run, memory."""
    config = make_config(preset)
    if small:
        config = make_config(preset, student="convnet_8_8", num_images=10, batch_size=16, image_size=8)
    size = config.image_size or 32
    setting = step_time.Setting(config.student, "resnet18", config.num_images, config.batch_size, size)
    ran = step_time.run(side, setting, steps, device)
    bf16 = side in ("bf16", "fast")
    card = roofline.measure_card(device, bf16=bf16, small=small)
    phases = roofline.step_operations(config, step_time.target_model(setting), Layout(WIDTH))
    least = {phase: card.seconds(operations) for phase, operations in phases.items()}
    seconds = step_time.median(ran)
    if side != "reference":  # which asks the target in each step, as the preset does; ours is given what was kept
        seconds += (of_target := target_seconds(setting, device, bf16=bf16))
        ran["phases"]["target"] = of_target
    return {
        "seconds": seconds,
        "phases": ran["phases"],
        "roofline_seconds": sum(least.values()),
        "roofline_phases": least,
        "of_roofline": sum(least.values()) / seconds,
        "flops": sum(flops for operations in phases.values() for flops, *_ in operations),
        "operations": sum(map(len, phases.values())),
        "card": asdict(card),
        "run_hours": run_hours(config, seconds, ran["phases"]),
        "memory_gib": ran["memory"] / 2**30,
        "losses": ran["losses"],
    }


def target_seconds(setting: step_time.Setting, device: str, *, bf16: bool) -> float:
    """Measures the target's pass of a real batch, the median of three."""
    _, _, real, target = step_time.start(setting, device)
    times = []
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        for _ in range(4):
            began = step_time.now(device)
            target(real)
            times.append(step_time.now(device) - began)
    return sorted(times[1:])[1]


def run_hours(config: DistillConfig, seconds: float, phases: dict[str, float]) -> float:
    """Estimates a whole run: the pool's warm-up and all steps."""
    training = config.pool.size * (config.pool.max_age + 1) / 2
    return (training * phases.get("pool update", 0.0) + config.steps * seconds) / 3600


def _tell(name: str, results: dict[str, Any], preset: str) -> None:
    result, plain = results[name], results[f"{preset} reference"]
    if "error" in result or "error" in plain:
        print(f"{name}: {result.get('error')}", flush=True)
        return
    print(
        f"{name}: {1e3 * result['seconds']:.1f} ms a step, {plain['seconds'] / result['seconds']:.2f} times the "
        f"reference, {result['of_roofline']:.0%} of the card's, {result['memory_gib']:.2f} GiB, a run takes "
        f"{result['run_hours']:.1f} h",
        flush=True,
    )


def good(part: Part, folder: Path) -> bool:
    """Runs the transfer setting for as long as there is time; it goes on where it stopped."""
    script = [sys.executable, str(HERE / "transfer" / "gpu.py")]
    small = ["--small"] if part.small else []
    with subprocess.Popen([*script, "--device", part.device, "--out", str(folder / "transfer"), *small]) as child:
        try:
            code = child.wait(max(0.0, part.left - ENDING))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)  # the step in hand is done and saved
            try:
                code = child.wait(ENDING)
            except subprocess.TimeoutExpired:
                child.kill()
                code = child.wait()
    results = folder / "transfer" / "results.json"
    if results.exists():
        part.kept["results"] = {"transfer": json.loads(results.read_text())}
    return code == 0


PARTS: dict[str, Callable[[Part, Path], bool]] = {"right": right, "fast": fast, "good": good}


def main() -> None:
    """Does the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("part", choices=PARTS, nargs="?", help="by default one after the other")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--minutes", type=float, default=9.0, help="of each part")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    done = True
    for name in [options.part] if options.part else PARTS:
        part = Part(options.folder, name, options)
        if not part.kept["done"]:
            part.write(done=PARTS[name](part, options.folder))
        print(f"{name}: {'done' if part.kept['done'] else 'not done: give the same command again'}", flush=True)
        done = done and part.kept["done"]
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
