"""The command line: `lightly-distill COMMAND --help` explains each."""

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from lightly_distill.cli import demo, distill, evaluate, inspect, pretrain, publish, students, sweep
from lightly_distill.cli.options import PROGRAM
from lightly_distill.errors import UsageError, did_you_mean
from lightly_distill.runtime.processes import is_main
from lightly_distill.synthetic.pretrain import RECIPES

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


class _Parser(ArgumentParser):
    """Options with dashes and in full, and errors in one line with the nearest name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # a part of a name would be another option when there are more of them
        super().__init__(*args, allow_abbrev=False, print_config="--print-config", **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_argument(*(a.replace("_", "-") if a.startswith("--") else a for a in args), **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split())
        unknown = [word for word in message.split() if word.startswith("--")]
        if "nrecognized arguments" in message and unknown:
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            message = f"Unknown option {unknown[0]}.{did_you_mean(unknown[0].split('=')[0], known)}"
        print(f"{self.prog.replace(' [options]', '')}: error: {message} (see --help)", file=sys.stderr)
        sys.exit(2)


def build_parser(defaults: Mapping[str, Any] | None = None, of: str = "") -> ArgumentParser:
    """Builds the parser of all commands; the options of one may be given other defaults."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog=PROGRAM, description="Distils a large unlabelled image set into a small synthetic one.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('lightly-distill')}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = _Parser(description=module.ABOUT, epilog=getattr(module, "EPILOG", None))
        module.arguments(command)
        known = {action.dest for action in command._actions}
        if defaults is not None and name == of:
            command.set_defaults({key: value for key, value in defaults.items() if key in known})
        command.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        commands.add_subcommand(name, command, help=module.ABOUT)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments after the program's name; by default the process's.

    Returns:
        Exit status: 0 done, 1 a failure, 2 wrong usage, 128 + the number of the signal that ended it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parse(argv)
    except SystemExit as end:
        return int(end.code or 0)
    options = parsed[parsed.command]
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    level = logging.INFO if is_main() else logging.ERROR
    logging.getLogger("lightly_distill").setLevel(level)
    logging.getLogger("lightly_distill_integrations").setLevel(level)
    if not options.debug:
        warnings.filterwarnings("ignore")
    try:
        COMMANDS[parsed.command].run(options)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted{getattr(COMMANDS[parsed.command], 'INTERRUPTED', '')}", file=sys.stderr)
        return 130
    except SystemExit as end:  # after a signal
        return int(end.code or 0)
    except Exception as error:  # whatever it is, a user of the command line gets one line
        return _told(error, debug=options.debug)
    return 0


def _told(error: Exception, *, debug: bool) -> int:
    """Prints an error in one line and returns the exit status; raises it where the user wants the traceback."""
    if debug:
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    # by each process: RANK may be left over in the environment of one that is alone
    print(f"{PROGRAM}: error: {text}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def _parse(argv: Sequence[str]) -> Namespace:
    parser = build_parser()
    parsed = parser.parse_args(argv)
    if not parsed.command:
        parser.print_help()
        sys.exit(2)
    options = parsed[parsed.command]
    preset, recipe = options.get("preset"), options.get("recipe", "default")
    if preset is not None:
        try:
            defaults = _flat(distill.preset_defaults(options))
        except Exception as error:  # of the images, at which `auto` looks
            sys.exit(_told(error, debug=options.debug))
    elif parsed.command == "pretrain" and recipe != "default":
        defaults = asdict(RECIPES[recipe])
    else:
        return parsed
    # read again over the preset or recipe, so that options and files have the last word
    return build_parser(defaults, parsed.command).parse_args(argv)


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
