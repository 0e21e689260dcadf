"""From the command line (and a JSON file) to a frozen options object."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from plantops._cli.defaults import OF_THE_PAPERS_NETWORKS, PRESETS, for_command
from plantops._cli.mistakes import Mistake
from plantops._cli.options import CODE, LEAST, MOST, MOST_OF_ALL, OLD_NAMES, POSITIONAL

Options = TypeVar("Options")

CONFIG_FLAG, RESUME_FLAG = "--config", "--resume"
WITH_RESUME = ("progress", "checkpoint_seconds", "data_root", "threads", "report")
"""What may be given together with --resume: it has no say in the numbers (threads: only that it can be set back)."""
NOT_FROM_FILE = ("out", "command")
"""A new run made from a run's configuration goes to a folder of its own."""


def parse(kind: type[Options], command: str, arguments: Sequence[str], default: Options | None = None) -> Options:
    """The options of ``command``: flags over ``default``.

    A flag is ``--name VALUE`` or ``--name=VALUE``; a switch ``--name`` or ``--no-name``.

    Raises:
        Mistake: an unknown flag, a value that does not fit.
    """
    values = {} if default is None else {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}  # type: ignore[arg-type]
    values.update(_given_values(kind, command, arguments))
    if POSITIONAL in _types(kind) and POSITIONAL not in values:
        raise Mistake(f"give the folder of a run, as in plantops {command} runs/plant-digits-1.")
    check_bounds(values)
    return kind(**values)


def _given_values(kind: type[Any], command: str, arguments: Sequence[str]) -> dict[str, Any]:
    types, values = _types(kind), dict[str, Any]()
    places = iter(arguments)
    for argument in places:
        name = flag_name(argument)
        flag, sign, text = argument.partition("=")
        if name is None:
            if POSITIONAL not in types or POSITIONAL in values or argument.startswith("-"):
                raise Mistake(f"{argument!r} belongs to no option. See plantops {command} --help.")
            values[POSITIONAL] = argument
        elif name in types and types[name] is bool and not sign:
            values[name] = True
        elif name.removeprefix("no_") in types and types[name.removeprefix("no_")] is bool and not sign:
            values[name.removeprefix("no_")] = False
        elif name not in types or name == POSITIONAL:
            raise Mistake(_unknown(flag, types, command))
        else:
            values[name] = _value(text if sign else _following(places, flag), flag, types[name])
    return values


def _following(places: Any, flag: str) -> str:
    text = next(places, None)
    if text is None or text.startswith("--"):
        raise Mistake(f"{flag} needs a value.")
    return str(text)


def _unknown(flag: str, types: dict[str, Any], command: str) -> str:
    known = [as_flag(name) for name in types] + [CONFIG_FLAG, RESUME_FLAG]
    near = difflib.get_close_matches(flag, known, 3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"Unrecognized options: {flag}.{hint} See plantops {command} --help."


def _value(text: str, flag: str, expected: Any) -> Any:
    """What ``text`` says where a value of the type ``expected`` goes."""
    kinds = get_args(expected) if get_origin(expected) is not Literal and get_args(expected) else (expected,)
    if type(None) in kinds and text == "None":
        return None
    kind = next(one for one in kinds if one is not type(None))
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise Mistake(f"{flag} must be one of {', '.join(get_args(kind))}, got {text!r}.")
        return text
    if kind is str:
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise Mistake(f"{flag} must be {_named(kind)}, got {text!r}.") from None


def _types(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def as_flag(name: str) -> str:
    """``--val-fraction`` for the field ``val_fraction``."""
    return f"--{name.replace('_', '-')}"


def check_bounds(values: dict[str, Any], where: str = "") -> None:
    """No number outside what its option can be, and none that is not finite; ``where``: a file that they come from.

    Raises:
        Mistake: names the option.
    """
    begin = f"{where}: " if where else ""
    for name, value in values.items():
        if type(value) not in (int, float):
            continue
        called = name if where else as_flag(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise Mistake(f"{begin}{called} must be a finite number, got {value}.")
        if value > MOST.get(name, MOST_OF_ALL):
            raise Mistake(f"{begin}{called} must be at most {MOST.get(name, MOST_OF_ALL)}, got {value}.")
        if name in LEAST and value < LEAST[name]:
            raise Mistake(f"{begin}{called} must be at least {LEAST[name]}, got {value}.")


def resolve(kind: type[Options], command: str, arguments: Sequence[str]) -> Options:
    """Defaults of the data set, then those of the preset, then --config FILE, then the flags."""
    file, rest = take(arguments, CONFIG_FLAG)
    values = {} if file is None else read_config(Path(file), kind)
    defaults = defaults_of(kind, command, rest, values)
    options = parse(kind, command, rest, build(kind, {**defaults, **values}, file or command))
    if file is not None:
        check_named(values, rest, file)
    return options


def defaults_of(
    kind: type[Any], command: str, arguments: Sequence[str], values: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The defaults of the data set, the preset and the kind of network that the arguments (or ``values`` from a file)
    name."""
    values = values or {}
    names = {field.name for field in dataclasses.fields(kind)}
    data = given(arguments, "data") or values.get("data", "digits")
    preset = given(arguments, "preset") or values.get("preset", "default")
    if "preset" in names and preset not in PRESETS:
        raise Mistake(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    known = for_command(command, str(data), preset if "preset" in names else "default")
    if given(arguments, "model") or values.get("model"):
        known = {name: value for name, value in known.items() if name not in OF_THE_PAPERS_NETWORKS}
    return {name: value for name, value in known.items() if name in names}


def resolve_again(kind: type[Options], command: str, stored: dict[str, Any], arguments: Sequence[str]) -> Options:
    """A run's own configuration, with the few flags that may be given together with --resume."""
    kept = stored_options(stored)
    flags, rest = dict[str, str](), list(arguments)
    for name in CODE:
        value, rest = take(rest, as_flag(name))
        if value is not None:
            flags[name] = value
            if kept.get(name) != value:
                raise Mistake(f"--resume goes on with the run's own {as_flag(name)} {kept.get(name)}, got {value}.")
    for argument in rest:
        found = flag_name(argument)
        if found is not None and found.removeprefix("no_") not in WITH_RESUME:
            raise Mistake(
                f"--resume goes on with the run's own configuration: leave out {argument.partition('=')[0]}, "
                "or start a new run with --config RUN/config.json."
            )
    options = parse(kind, command, rest, build(kind, kept, "the run's config.json"))
    check_named(kept, arguments, "the run's config.json")
    return options


def stored_options(stored: dict[str, Any]) -> dict[str, Any]:
    """The options in a run's configuration, by the names that they have now."""
    return {OLD_NAMES.get(name, name): value for name, value in stored.items() if name != "command"}


def check_named(values: dict[str, Any], arguments: Sequence[str], where: str) -> None:
    """Code that a file names is not run: the command line of this call has to name it.

    Raises:
        Mistake: ``values`` from the file ``where`` name some, and ``arguments`` do not.
    """
    for name in CODE:
        value, flag = values.get(name), as_flag(name)
        if isinstance(value, str) and names_code(value) and given(arguments, name.replace("_", "-")) is None:
            raise Mistake(
                f"{where} names code, {flag} {value}, which is run only when the command line names it: give "
                f"{flag} {value} again if you trust it."
            )


def names_code(text: str) -> bool:
    """Could ``text`` be ``package.module:factory`` (and is it no folder)? torchvision and timm only have networks."""
    library, sign, name = text.partition(":")
    named = bool(sign and name) and all(part.isidentifier() for part in library.split("."))
    return named and library not in ("torchvision", "timm") and not Path(text).exists()


def take(arguments: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of ``flag`` (``--flag VALUE`` or ``--flag=VALUE``) and the arguments without it."""
    rest: list[str] = []
    value: str | None = None
    places = iter(arguments)
    for argument in places:
        if flag_name(argument) != flag_name(flag):
            rest.append(argument)
        elif "=" in argument:
            value = argument.partition("=")[2]
        else:
            value = _following(places, flag)
    return value, rest


def given(arguments: Sequence[str], name: str) -> str | None:
    """The value of one flag, without taking it."""
    return take(arguments, f"--{name}")[0]


def flag_name(argument: str) -> str | None:
    """``--val-fraction=0.2`` is the field ``val_fraction``, ``--max-params`` by its old name ``max_parameters``."""
    if not argument.startswith("--"):
        return None
    name = argument[2:].partition("=")[0].replace("-", "_")
    return OLD_NAMES.get(name, name)


def respelled(text: str, arguments: Sequence[str]) -> str:
    """A message that calls an option by its name calls it as the arguments do, where they use an old name."""
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for flag in flags:
        name = flag[2:].replace("-", "_")
        if name in OLD_NAMES and as_flag(OLD_NAMES[name]) not in flags:
            text = text.replace(f"{as_flag(OLD_NAMES[name])} ", f"{flag} ")
    return text


def read_config(path: Path, kind: type[Any]) -> dict[str, Any]:
    """A JSON object of options, or a run's config.json.

    Raises:
        Mistake: no such file, not JSON, a name that is no option.
    """
    from plantops.train.files import RunError, parse_json, read_regular

    try:
        document = parse_json(read_regular(path.expanduser()), path)
    except RunError as error:
        raise Mistake(f"--config {error} It takes a JSON file of options, such as a run's config.json.") from None
    if isinstance(document, dict) and document.get("format") == "plantops-run":
        document = document.get("config")
    if not isinstance(document, dict):
        raise Mistake(f"--config {path}: must be a JSON object of options, such as a run's config.json.")
    return stored_options({name: value for name, value in document.items() if name not in NOT_FROM_FILE})


def build(kind: type[Options], values: dict[str, Any], where: str) -> Options:
    """An options object from plain values, each checked against its field's type and bounds.

    Raises:
        Mistake: a name that is no option, a value of another type.
    """
    types = _types(kind)
    for name, value in values.items():
        if name not in types:
            raise Mistake(f"{where}: {name!r} is no option; the options are {', '.join(types)}.")
        if not _fits(value, types[name]):
            raise Mistake(f"{where}: {name} must be {_named(types[name])}, got {value!r}.")
    values = {name: _as_float(value, types[name]) for name, value in values.items()}
    check_bounds(values, where)
    return kind(**values)


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value from JSON is of a field's type: ``int | None``, ``Literal["ce", "kl"]``, ..."""
    if get_origin(expected) is Literal:
        return isinstance(value, str) and value in get_args(expected)
    if get_args(expected):
        return any(_fits(value, part) for part in get_args(expected))
    if expected is float and type(value) is int:
        return abs(value) < 1e300
    return type(value) is expected


NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "None"}


def _named(expected: Any) -> str:
    """A type in words."""
    if get_origin(expected) is Literal:
        return f"one of {', '.join(get_args(expected))}"
    return " or ".join(NAMES[part] for part in get_args(expected)) if get_args(expected) else NAMES[expected]


def _as_float(value: Any, expected: Any) -> Any:
    return float(value) if type(value) is int and float in (expected, *get_args(expected)) else value
