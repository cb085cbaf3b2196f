"""Settings as small frozen dataclasses: checked when they are made, changed by name, compared leaf by leaf."""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any, TypeVar, get_args, get_type_hints

from lightly_distill.errors import UsageError, did_you_mean

ConfigT = TypeVar("ConfigT")


def choose(config: ConfigT | None, default: ConfigT, options: Mapping[str, Any]) -> ConfigT:
    """Returns the settings that a function was given: all at once, or as single options.

    Args:
        config: All settings, or None.
        default: What the options change.
        options: Fields by name.

    Raises:
        UsageError: If both are given, or an option is unknown, of the wrong type, or out of range.
    """
    if config is None:
        return update(default, options)
    if options:
        raise UsageError(
            f"Give either config or single options, here {', '.join(sorted(options))}: use dataclasses.replace to "
            "change a config."
        )
    return config


def update(config: ConfigT, options: Mapping[str, Any]) -> ConfigT:
    """Returns `config` with some of its fields replaced; nested parts are updated, not replaced.

    Raises:
        UsageError: If an option is unknown, of the wrong type, or out of range.
    """
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for name, value in options.items():
        if name not in hints:
            raise UsageError(f"Unknown option '{name}'.{did_you_mean(name, hints)}")
        current = getattr(config, name)
        if is_dataclass(current) and isinstance(value, Mapping):
            value = update(current, value)
        elif is_dataclass(current) and not isinstance(value, type(current)):
            raise UsageError(f"Option '{name}' takes a {type(current).__name__} or a mapping; got {value!r}.")
        changes[name] = value
    return replace(config, **changes)  # type: ignore[type-var]


def check_known(options: Mapping[str, Any], function: Callable[..., Any], config: type) -> None:
    """Refuses options that are none, and suggests what the function takes itself too, which `update` does not know.

    Args:
        options: What the function was given beside its own parameters.
        function: Or a class.
        config: The class of the settings.

    Raises:
        UsageError: If one is neither a parameter nor a setting.
    """
    parameters = inspect.signature(function).parameters.values()
    known = {*get_type_hints(config), *(each.name for each in parameters if each.kind is not each.VAR_KEYWORD)}
    for name in options:
        if name not in known:
            raise UsageError(f"Unknown option '{name}'.{did_you_mean(name, known)}")


def check_bool(config: Any, *names: str, prefix: str = "") -> None:
    """Refuses fields that are not true or false.

    Raises:
        UsageError: If one is something else.
    """
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise UsageError(f"{prefix}{name} must be true or false; got {getattr(config, name)!r}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a configuration as nested plain values, the form in which it is saved."""
    return asdict(config)


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested values by their path, such as `pool.size`."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def differences(saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lists the leaves in which two nested mappings differ, as `path: saved -> current`."""
    lines = []
    for name in sorted(set(saved) | set(current)):
        before, after = saved.get(name), current.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before} -> {after}")
    return lines


def check_number(config: Any, *names: str, least: float | None = None, prefix: str = "") -> None:
    """Refuses fields that are not a finite number of their kind above 0, or of at least `least`.

    Args:
        config: A dataclass; the type of each field says whether the number is whole.
        names: Of fields.
        least: None for anything above 0.
        prefix: Of the fields' names in messages, such as `pool.`.

    Raises:
        UsageError: If one is not.
    """
    kinds = get_type_hints(type(config))
    for name in names:
        value = getattr(config, name)
        if isinstance(value, numbers.Number) and not isinstance(value, (int, float)) and hasattr(value, "item"):
            value = value.item()  # NumPy's
            object.__setattr__(config, name, value)
        whole = float not in (kinds[name], *get_args(kinds[name]))
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not (value > 0 if least is None else value >= least):
            bound = "a positive" if least is None else f"at least {least}, a"
            raise UsageError(f"{prefix}{name} must be {bound} {'whole ' if whole else ''}number; got {value!r}.")


def check_one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuses a value that is none of those known.

    Raises:
        UsageError: If it is not.
    """
    if value not in known:
        raise UsageError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
