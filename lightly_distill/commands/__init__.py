"""The commands, one module each: what it does (`ABOUT`), how its options are declared, how it is run."""

from lightly_distill.commands import demo, distill, evaluate, inspect, pretrain, publish, students, sweep

# in the order of --help
COMMANDS = {
    "demo": demo,
    "distill": distill,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "sweep": sweep,
    "publish": publish,
    "students": students,
    "inspect": inspect,
}
