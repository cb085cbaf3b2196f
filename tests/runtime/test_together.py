"""An error in one of two processes ends both, whatever the other waits for."""

import subprocess
from pathlib import Path

import pytest

import several

# A process that fails stays, as one whose exit hangs: what it shares with the other is open until its input ends. Where
# it goes at once, the other is told by what they share that it is gone, but not why.
SCRIPT = """
import json, os
import tiny
from lightly_distill import DistillationStage
from lightly_distill.runtime import together

together.GRACE = 0.5
out, rank = json.loads(sys.argv[1]), os.environ["RANK"]
said = sys.excepthook
sys.excepthook = lambda *error: (said(*error), sys.stderr.flush(), sys.stdin.read() if {stays} else None)

class Log:
    def start(self): pass
    def log(self, row): pass

def fail(*args, **kwargs):
    raise KeyError("the key")

{fault}
options = {{"student": "convnet_4_8", "num_images": 7, "image_size": 8, "batch_size": 15, "steps": 4, "log_every": 2}}
pool = {{"size": 2, "max_age": 2}}
DistillationStage(tiny.encoder(), device="cpu", pool=pool, **options).run(tiny.images(50), out=out, log=Log())
"""
FAULTS = {
    "reading": (0, "from lightly_distill.data import shared\nshared.first_pass = fail"),
    "looking": (1, "from lightly_distill.runs import stage\nstage.find_for_target = fail"),
    "target": (0, "from lightly_distill.method.truth import TargetTruth\nTargetTruth._of_all_views = fail"),
    "step": (1, "from lightly_distill.method import distill\ndistill._outer_step = fail"),
    "tracker": (0, "Log.log = fail"),
    "saving": (0, "from lightly_distill import SyntheticSet\nSyntheticSet.save = fail"),
}
SLOW = ("reading", "looking", "target", "step")


CASES = [(place, True) for place in FAULTS if place != "tracker"] + [("tracker", False)]


@pytest.mark.parametrize(
    ("place", "stays"),
    [pytest.param(*case, marks=pytest.mark.slow) if case[0] in SLOW else case for case in CASES],
)
def test_an_error_of_somebody_elses_in_one_process_ends_the_other(place: str, stays: bool, tmp_path: Path) -> None:
    failing, fault = FAULTS[place]
    script = SCRIPT.format(
        stays=stays, fault=f"if rank == '{failing}':\n" + "".join(f"    {line}\n" for line in fault.splitlines())
    )
    children = several.start(script, str(tmp_path / "run"))
    other = children[1 - failing]
    if place == "reading":  # which the other raises itself, as every error of what one does for all
        assert other.stdin is not None
        other.stdin.close()
        other.stdin = None
    try:
        other.wait(timeout=100)
    except subprocess.TimeoutExpired:
        for child in children:
            child.kill()
        pytest.fail("it waits for the one that has failed")
    told = several.finish(children)
    assert [status for status, _, _ in told] == [1, 1], told
    assert "KeyError: 'the key'" in told[failing][2]
    assert f"Process {failing} of 2 failed: KeyError: 'the key'" in told[1 - failing][2]


OWN_GROUP = """
import json, os
import torch
from torch import distributed
import tiny
from lightly_distill import DistillationStage, UsageError

distributed.init_process_group("gloo")
stage = DistillationStage(tiny.encoder(), student="convnet_4_8", num_images=7, steps=0, device="cpu")
for number in range(2):
    try:
        stage.run(tiny.images(50), out=json.loads(sys.argv[1]))
    except UsageError as error:
        assert "is not empty" in str(error)
    else:
        raise AssertionError
    ones = torch.ones(1)
    distributed.all_reduce(ones)
    assert ones == 2
"""


@pytest.mark.slow
def test_a_group_of_the_users_own_outlives_what_all_are_told(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("here")
    for status, _, errors in several.finish(several.start(OWN_GROUP, str(tmp_path))):
        assert status == 0, errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
