"""The command line: `lightly-distill COMMAND --help` explains each."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from lightly_distill.cli import demo, distill, evaluate, inspect, pretrain, publish, students, sweep
from lightly_distill.cli.options import PROGRAM
from lightly_distill.cli.wording import commands_of, in_plain_words
from lightly_distill.errors import UsageError
from lightly_distill.runtime.console import aloud, tell_once
from lightly_distill.runtime.processes import is_main
from lightly_distill.runtime.settings import flat
from lightly_distill.synthetic.pretrain import RECIPES

_logger = logging.getLogger(__name__)

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

_UNREAD = 141  # 128 + the number of SIGPIPE, which Windows has not


class _Parser(ArgumentParser):
    """Options with dashes and in full, and errors in one line with the nearest name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # a part of a name would be another option when there are more of them
        super().__init__(*args, allow_abbrev=False, print_config="--print-config", **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_argument(*(a.replace("_", "-") if a.startswith("--") else a for a in args), **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = in_plain_words(" ".join(message.split()), self)
        print(f"{self.prog.replace(' [options]', '')}: error: {message} (see --help)", file=sys.stderr)
        sys.exit(2)


def build_parser() -> ArgumentParser:
    """Builds the parser of all commands."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog=PROGRAM, description="Distils a large unlabelled image set into a small synthetic one.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('lightly-distill')}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = _Parser(description=module.ABOUT, epilog=getattr(module, "EPILOG", None))
        module.arguments(command)
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
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    level = logging.INFO if is_main() else logging.ERROR
    logging.getLogger("lightly_distill").setLevel(level)
    logging.getLogger("lightly_distill_integrations").setLevel(level)
    with aloud():  # one block, in which nothing is told twice
        status = _run(argv)
    return _UNREAD if _is_unread() else status


def _run(argv: list[str]) -> int:
    debug, goes_on = "--debug" in argv, ""  # of what cannot be parsed
    try:
        parsed = _parse(argv)
        options, command = parsed[parsed.command], COMMANDS[parsed.command]
        debug, goes_on = options.debug, getattr(command, "INTERRUPTED", "")
        if not debug:
            warnings.filterwarnings("ignore")
        with nullcontext() if debug else _retries_told_once():
            command.run(options)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted{goes_on}", file=sys.stderr)
        return 130
    except SystemExit as end:  # of the parser, or after a signal
        return _status(end)
    except Exception as error:  # whatever it is, a user of the command line gets one line
        # a failed write leaves nothing to write again, so that the end of the line is tried
        return _UNREAD if isinstance(error, BrokenPipeError) and _is_unread("\n") else _told(error, debug=debug)
    return 0


def _is_unread(more: str = "") -> bool:
    """Returns whether what read our output has ended, as `head` does; nobody is told of it, and the rest is dropped."""
    try:
        print(more, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it ends
        return True
    return False


def _status(end: SystemExit) -> int:
    """Returns the exit status as Python does, which prints a text that somebody else's code exits with."""
    if end.code is None or isinstance(end.code, int):
        return int(end.code or 0)
    print(f"{PROGRAM}: error: {' '.join(str(end.code).split())}", file=sys.stderr)
    return 1


@contextmanager
def _retries_told_once() -> Iterator[None]:
    """Has one line told of a Hub that does not answer, where its client tells two of each of many tries."""
    client = logging.getLogger("huggingface_hub.utils._http")

    def told(record: logging.LogRecord) -> bool:
        if record.msg.startswith("Retrying in ") or " thrown while requesting " in record.msg:
            tell_once(_logger, logging.WARNING, "The Hugging Face Hub does not answer; it is asked a few times more.")
            return False
        return True

    client.addFilter(told)
    try:
        yield
    finally:
        client.removeFilter(told)


def _told(error: Exception, *, debug: bool) -> int:
    """Prints an error in one line and returns the exit status; raises it where the user wants the traceback."""
    if debug:
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    # by each process: RANK may be left over in the environment of one that is alone
    print(f"{PROGRAM}: error: {text}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def _parse(argv: Sequence[str]) -> Namespace:
    """Reads the options, and again over the preset, recipe or run that they name, so that they have the last word."""
    first = _parse_roughly(argv)
    options, parser = first[first.command], build_parser()
    own = commands_of(parser)[first.command]
    if options.get("preset") is not None:
        defaults = flat(distill.preset_defaults(options))
        known = {action.dest for action in own._actions}
        own.set_defaults({name: value for name, value in defaults.items() if name in known})
    elif first.command == "pretrain" and options.recipe != "default":
        own.set_defaults(asdict(RECIPES[options.recipe]))
    if first.command == "distill":
        argv = [argv[0], *distill.config_of_run(options), *argv[1:]]
    return parser.parse_args(argv)


def _parse_roughly(argv: Sequence[str]) -> Namespace:
    """Reads the options without missing any; what --print-config prints is not yet known."""
    parser = build_parser()  # a parser of its own: jsonargparse's are used once
    helped = {"-h", "--help"} & set(argv)  # which says what is required
    with nullcontext() if helped else _nothing_required(parser, *commands_of(parser).values()):
        parsed = parser.parse_args([word for word in argv if word.partition("=")[0] != "--print-config"])
    if not parsed.command:
        parser.print_help()
        sys.exit(2)
    return parsed


@contextmanager
def _nothing_required(*parsers: ArgumentParser) -> Iterator[None]:
    required = [action for parser in parsers for action in parser._actions if action.required]
    for action in required:
        action.required = False
    try:
        yield
    finally:
        for action in required:
            action.required = True
