"""What jsonargparse says of a wrong option, in words for people: the option, what it takes, and the nearest of that."""

import re
from ast import literal_eval

from jsonargparse import ArgumentParser

from lightly_distill.errors import did_you_mean

_VALUE = re.compile(r'Parser key "(?P<key>[^"]+)": .*(?:Got value|Given value): (?P<value>.*)')
_NUMBER = re.compile(  # of one of jsonargparse's own kinds of numbers, which name the value otherwise
    r'Parser key "(?P<key>[^"]+)": Not of type \w+: (?:.*base 10: \'(?P<text>.*)\'|(?P<value>\S+) does not conform.*)'
)
_KINDS = {
    "<class 'int'>": "a whole number",
    "PositiveInt": "a whole number above 0",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
}
_TEXT = "text, which is in quotes in a file where it looks like a number"
_REQUIRED = "the following arguments are required: "


def commands_of(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """Returns the parsers of the commands of a program by name."""
    return next((action.choices for action in parser._actions if isinstance(action.choices, dict)), {})


def in_plain_words(message: str, parser: ArgumentParser) -> str:
    """Says an error of a parser in one line; what is not known here stays as it is.

    Args:
        message: Of jsonargparse, on one line.
        parser: Of the program or of a command, whose options are known.
    """
    if "nrecognized arguments: " in message:
        first = message.split("nrecognized arguments: ")[1].split()[0]
        known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
        if not first.startswith("-"):
            return f"'{first}' belongs to no option."
        return f"Unknown option {first}.{did_you_mean(first.split('=')[0], known)}"
    if found := re.search("invalid choice: '(.*?)' ", message):
        return f"Unknown command '{found[1]}'.{did_you_mean(found[1], commands_of(parser))}"
    if message.startswith(_REQUIRED):
        return f"Missing: {', '.join(_written(path, parser) for path in message[len(_REQUIRED) :].split(', '))}."
    if found := re.match("argument (--.*?): expected one argument", message):
        return f"{found[1]} needs a value."
    if found := re.match(r'Parser key "([^"]+)": (?:File does not exist: |Unable to load config )\'(.*?)\'', message):
        return f"--{found[1].replace('_', '-')} takes a YAML file of options; there is none at {found[2]}."
    found = _VALUE.match(message) or _NUMBER.match(message)
    takes = _takes(message)
    if found is None or not takes:
        return message
    value = found["value"] or found.groupdict().get("text") or ""
    names = _literals(message)
    near = did_you_mean(value, names, list_up_to=0) if names else ""
    return f"--{found['key'].replace('_', '-')} takes {takes}; got '{value}'.{near}"


def _takes(message: str) -> str:
    """Returns what the types that a message names take, such as `a whole number or auto`."""
    kinds = [words for kind, words in _KINDS.items() if kind in message]
    *others, last = [*kinds, *_literals(message)] or [_TEXT if "<class 'str'>" in message else ""]
    return f"{', '.join(others)} or {last}" if others else last


def _literals(message: str) -> list[str]:
    found = re.search(r"Expected a typing\.Literal(\[.*?\])", message)
    return [str(name) for name in literal_eval(found[1])] if found else []


def _written(path: str, parser: ArgumentParser) -> str:
    """Returns how the option at a path, such as `distill.out`, is written on the command line."""
    command, _, name = path.rpartition(".")
    action = next(each for each in commands_of(parser).get(command, parser)._actions if each.dest == name)
    return f"{action.option_strings[0]} {action.metavar}" if action.option_strings else str(action.metavar)
