"""The output folder of a run: configuration, measurements, checkpoints, pictures, and the set itself.

config.yaml        what was run, in full; `--config` takes it back
metrics.jsonl      one row every `log_every` steps
checkpoints/       what `--resume` needs
representations/   the target's of the real images, so that `--resume` and others need not compute them again
pictures/          before and after, loss curve
set/               the synthetic set
trackers/          what trackers of --log-with keep in files
"""

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from torch import Tensor

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.method.config import DistillConfig, as_recorded
from lightly_distill.method.representation_cache import RepresentationCache
from lightly_distill.method.state import DistillState
from lightly_distill.runs import checkpoint, lock, representations
from lightly_distill.runs.run_log import RunLog
from lightly_distill.runtime import signals
from lightly_distill.runtime.background import Background
from lightly_distill.runtime.files import PARTIAL, remove, replacing, writing
from lightly_distill.runtime.processes import ALONE, Processes
from lightly_distill.runtime.settings import differences, to_dict
from lightly_distill.synthetic import artifact, set_facts

TRACKERS = "trackers"
OWN_NAMES = ("config.yaml", "metrics.jsonl", "checkpoints", representations.FOLDER, "pictures", "set", TRACKERS)
# settings that may change between a run and its resumption
FREE_TO_CHANGE = ("device", "num_workers", "log_every", "checkpoint_every", "checkpoint_minutes")

_logger = logging.getLogger(__name__)


class RunFolder:
    """Keeps the traces of one run.

    Checkpoints are written by a thread while the run goes on, one at a time; inside a `with`, which ends when the last
    one is on disk.

    Args:
        path: The folder, or None to keep nothing on disk.
        settings: Everything that decides the result: configuration, source and target with their fingerprints; may be
            empty without a folder.
        log: Is given each row of measurements too.
        processes: Of which the main one writes; all read.
        session: The conditions of this session, see `session_facts`.
        kept: The representations in the folder, if the run keeps them there.

    Attributes:
        sessions: The conditions of the run, and from which step on: one entry, and another for each time that it went
            on under other ones. The first is not from step 0 where an older version that recorded none began the run.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        log: RunLog | None = None,
        processes: Processes = ALONE,
        session: Mapping[str, Any] | None = None,
        kept: RepresentationCache | None = None,
    ) -> None:
        self.path = path
        self._log = log
        self._processes = processes
        self._settings = dict(settings)
        self.sessions: list[dict[str, Any]] = [{"from_step": 0, **(session or {})}]
        self._kept = kept
        self.rows: list[dict[str, Any]] = []
        self.seconds_before = 0.0  # of earlier sessions of a resumed run
        self._started = time.perf_counter()
        self._writing = Background()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._processes.in_main(self._writing.finish)
            return
        try:
            self._writing.finish()
        except DistillError as fault:  # the run has ended for another reason
            _logger.warning("%s", fault)

    @staticmethod
    def check(path: Path | None, *, resume: bool, overwrite: bool) -> None:
        """Refuses a folder that cannot be used, before any long work.

        Raises:
            UsageError: If another run is writing to the folder, there is something in it and neither flag is given,
                both are, or there is nothing to resume; or something else than a set lies where the set would be.
        """
        if resume and overwrite:
            raise UsageError("--resume and --overwrite contradict each other: go on with the old run, or replace it?")
        if path is None:
            if resume:
                raise UsageError("Resuming needs the folder of the run: give --out (out=... in Python).")
            return
        if path.exists() and not path.is_dir():
            raise UsageError(f"The output folder {path} is a file: choose another name.")
        lock.refuse_running(path)
        if resume and not checkpoint.exists(path / "checkpoints") and not representations.is_run(path):
            raise UsageError(f"Nothing to resume: there is no checkpoint in {path}. Start without --resume.")
        found = {entry.name for entry in path.iterdir()} if path.exists() else set()
        if found - set(lock.NAMES) and not (resume or overwrite):
            raise UsageError(
                f"The output folder {path} is not empty: go on with --resume, replace its run with --overwrite "
                "(resume=True, overwrite=True in Python), or choose another name."
            )
        artifact.refuse_occupied(path / "set", overwrite=True)
        above = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not above.is_dir():
            raise UsageError(f"The output folder {path} cannot be made: {above} is a file.")
        if not os.access(above, os.W_OK | os.X_OK):
            raise UsageError(f"The output folder {path} cannot be written to: no permission in {above}.")

    @staticmethod
    def check_settings(path: Path | None, config: DistillConfig) -> None:
        """Refuses to go on with other settings than those of the run, before target and images are looked at.

        What is decided by these is compared by `load_checkpoint`, which compares all.

        Raises:
            UsageError: If a setting is another; the message names each. Or if there is a set and no checkpoint left.
        """
        if path is None:
            return
        # a selection has no checkpoint
        if config.steps and (path / "set" / set_facts.FACTS).is_file() and not checkpoint.exists(path / "checkpoints"):
            raise UsageError(
                f"The run in {path} is finished and its checkpoints are gone: its set is in {path / 'set'}. It is made "
                "anew with --overwrite (overwrite=True in Python)."
            )
        begun = checkpoint.newest_facts(path / "checkpoints")
        if begun is not None:
            before, now = (_fixed_config(each) for each in (begun["settings"]["config"], to_dict(config)))
            _require_same(path, [line for line in differences(before, now, "config.") if not _decided_later(line)])

    def begin(self, *, resumed: bool, config: Mapping[str, Any]) -> None:
        """Makes the folder, removes an old run unless it is resumed, and writes the configuration.

        Raises:
            DistillError: If that fails, or the log of the run cannot start; in all processes.
        """
        self._processes.in_main(lambda: self._begin(resumed, config))

    def _begin(self, resumed: bool, config: Mapping[str, Any]) -> None:
        if self.path is not None:
            with writing(self.path):
                _remove_unfinished(self.path)
                if not resumed:
                    names = set(OWN_NAMES)
                    if self._kept is not None:
                        self._kept.forget_others()
                        names.remove(representations.FOLDER)
                    # only what a run wrote; the user's files stay, also where they lie in folders of our names
                    checkpoint.remove_all(self.path / "checkpoints")
                    for name in names - {"checkpoints"} if (self.path / "config.yaml").is_file() else ():
                        remove(self.path / name)
                (self.path / "pictures").mkdir(parents=True, exist_ok=True)
            with replacing(self.path / "config.yaml") as partial:
                partial.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        if self._log is not None:
            self._log.start()  # a tracker that lacks its key is noticed now, not after the warm-up

    def log(self, row: dict[str, Any]) -> None:
        """Appends a row to metrics.jsonl."""
        self.rows.append(row)
        if not self._processes.main:
            return
        if self.path is not None:
            log = self.path / "metrics.jsonl"
            with writing(log), open(log, "a") as file:
                file.write(json.dumps(row) + "\n")
        if self._log is not None:
            self._log.log(row)

    def last(self, name: str) -> Any:
        """Returns the newest measurement of this name, or None."""
        return next((row[name] for row in reversed(self.rows) if name in row), None)

    def checkpoint(self, state: DistillState) -> None:
        """Begins to write the state of the run as it is now, which all processes are asked for.

        Raises:
            DistillError: If the checkpoint before could not be written.
        """
        if self.path is not None:
            seconds = self.seconds_before + time.perf_counter() - self._started
            own = {"settings": self._settings, "sessions": self.sessions, "seconds": seconds}
            tensors, facts = state.tensors(), {**state.facts(), **own}
            if self._processes.main:
                self._writing.finish()  # before the next copy: there is memory for one
                snapshot = checkpoint.snapshot(state.step, tensors, facts)
                folder = self.path / "checkpoints"
                self._writing.start(lambda: checkpoint.save(folder, snapshot))

    def leave(self, state: DistillState, number: int) -> NoReturn:
        """Tells what is kept, now that it is there, and ends the program as the signal of this number asks.

        Raises:
            DistillError: If the state could not be written.
        """
        name = signal.Signals(number).name
        if not state.initial:  # at any moment of the warm-up: no process waits for another
            again = "--resume (resume=True in Python) starts from the beginning"
            computed = "" if self._kept is None else ", but for the target's representations"
            kept = (
                "nothing of the run is kept" if self.path is None else f"there is no checkpoint yet; {again}{computed}"
            )
            _logger.warning("Stopped by %s while the pool was warmed up: %s.", name, kept)
            signals.leave(number)
        self._processes.in_main(self._writing.finish)
        where = f"saved in {self.path}; go on with --resume (resume=True in Python)"
        kept = where if self.path is not None else "not saved, since the run has no output folder"
        _logger.warning("Stopped by %s: step %d is %s.", name, state.step, kept)
        signals.leave(number)

    def load_checkpoint(self, *, strict: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Reads the newest good checkpoint and drops the rows of metrics.jsonl that came after it.

        Warns where this session works under other conditions than the last one.

        Args:
            strict: Refuse to go back behind a damaged checkpoint.

        Returns:
            What `DistillState.restore` takes, or None if the run was stopped before its first checkpoint.

        Raises:
            DistillError: If no checkpoint can be used, or with `strict` the newest cannot.
            UsageError: If the checkpoint is of a run with other settings; the message names each difference.
        """
        assert self.path is not None
        if not checkpoint.exists(self.path / "checkpoints"):
            _logger.warning("The run in %s had no checkpoint yet: it starts from the beginning.", self.path)
            return None
        tensors, facts = checkpoint.load_newest(self.path / "checkpoints", strict=strict)
        _require_same(self.path, differences(_fixed(facts["settings"]), _fixed(self._settings)))
        self.seconds_before = facts["seconds"]
        self.sessions = self._sessions_after(facts.get("sessions", []), facts["step"])
        log = self.path / "metrics.jsonl"
        self.rows = [row for row in _rows(log) if row["step"] <= facts["step"]]
        if self._processes.main:
            with replacing(log) as partial:
                partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        return tensors, facts

    def _sessions_after(self, before: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
        own = {**self.sessions[-1], "from_step": step}
        if not before:  # older versions recorded none
            return [own]
        changed = differences({**before[-1], "from_step": step}, own)
        if not changed or step == self._settings["config"]["steps"]:  # of a finished run, no step is to come
            return before
        if self._processes.main:
            _logger.warning(
                "The run in %s goes on under other conditions (%s): the rest of the run is not bit for bit what the "
                "uninterrupted one would have been.",
                self.path,
                "; ".join(changed),
            )
        return [*before, own]


def run_config(folder: Path) -> dict[str, Any]:
    """Returns the configuration of the run that made a set: its folder or the set's; empty where there is none."""
    file = _of_run(folder, "config.yaml")
    config = yaml.safe_load(file.read_text()) if file else None
    return config if isinstance(config, dict) else {}


def run_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the measurements of the run that made a set, as `run_config` finds it."""
    file = _of_run(folder, "metrics.jsonl")
    return _rows(file) if file else []


def _of_run(folder: Path, name: str) -> Path | None:
    places = (folder, folder.parent) if folder.resolve().name == "set" else (folder,)
    return next((place / name for place in places if (place / name).is_file()), None)


def _rows(log: Path) -> list[dict[str, Any]]:
    rows = []
    for line in log.read_text().splitlines() if log.exists() else []:
        with contextlib.suppress(ValueError):  # cut off when the run was killed
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def _remove_unfinished(folder: Path) -> None:
    """Removes the temporary files that a killed run left."""
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/step-*"):
        for partial in folder.glob(name + PARTIAL):
            partial.unlink()
    for workspace in folder.glob(".set.????????"):  # of `artifact.write`
        remove(workspace)


def _require_same(path: Path | None, changed: Sequence[str]) -> None:
    if changed:
        raise UsageError(
            f"The run in {path} had other settings ({'; '.join(changed)}): give the old ones or another --out."
        )


def _decided_later(difference: str) -> bool:
    """Returns whether a line of `differences` is of a setting whose default depends on target and images."""
    return difference.removeprefix("config.").partition(":")[0] in ("target_map", "map_dims", "target_size")


def _fixed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = as_recorded(json.loads(json.dumps(config)))  # as a checkpoint gives it back: lists, not tuples
    return {name: value for name, value in plain.items() if name not in FREE_TO_CHANGE}


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    plain["config"] = _fixed_config(plain["config"])
    if not plain["config"]["target_map"]:
        del plain["config"]["map_dims"]  # of no account
    plain["source"].pop("name")  # how it was written; the fingerprint says what it is
    # by default it depends on target and images; in older versions, which record none, the target saw what students see
    plain["config"]["target_size"] = plain["target"].get("image_size", plain["source"].get("image_size"))
    for part in ("target", "representations"):  # of the second only what the user brought
        plain[part] = {"sha256": plain.get(part, {}).get("sha256")}
    return plain
