"""From the command line (and a JSON file) to a frozen options object."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from plantops._cli.defaults import PRESETS, for_command
from plantops._cli.mistakes import Mistake

Options = TypeVar("Options")

CONFIG_FLAG, RESUME_FLAG = "--config", "--resume"
WITH_RESUME = ("progress", "checkpoint_seconds", "data_root", "threads", "report")
"""What may be given together with --resume: it has no say in the numbers (threads: only that it can be set back)."""
NOT_FROM_FILE = ("out", "command")
"""A new run made from a run's configuration goes to a folder of its own."""


ABOUT = (
    "The defaults are those of the data set that --data names (digits without it), and of --preset where there is one. "
    "Besides: --config FILE takes options from a JSON file, such as a run's config.json; --resume RUN goes on with an "
    "interrupted run."
)


def parse(kind: type[Options], command: str, arguments: Sequence[str], default: Options | None = None) -> Options:
    """The options of ``command``: flags over ``default``.

    Raises:
        Mistake: an unknown flag, a value that does not fit.
        SystemExit: status 0 after --help.
    """
    try:
        import tyro
    except ImportError:
        raise Mistake("the command line needs tyro and rich: pip install 'plantops[cli]'") from None
    said = io.StringIO()
    about = ABOUT if hasattr(kind, "checkpoint_seconds") else None
    try:
        with contextlib.redirect_stderr(said):
            call: dict[str, Any] = {"prog": f"plantops {command}", "description": about, "args": list(arguments)}
            return tyro.cli(kind, **call) if default is None else tyro.cli(kind, **call, default=default)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise Mistake(f"{gist(said.getvalue())} See plantops {command} --help.") from None


def positional() -> Any:
    """The marker of an argument without a flag; nothing where tyro is not installed (``parse`` says so then)."""
    try:
        import tyro
    except ImportError:
        return None
    return tyro.conf.Positional


def alias(flag: str) -> Any:
    """The marker of an option that has a second flag; nothing where tyro is not installed."""
    try:
        import tyro
    except ImportError:
        return None
    return tyro.conf.arg(aliases=(flag,))


def resolve(kind: type[Options], command: str, arguments: Sequence[str]) -> Options:
    """Defaults of the data set, then those of the preset, then --config FILE, then the flags."""
    file, rest = take(arguments, CONFIG_FLAG)
    values = {} if file is None else read_config(Path(file), kind)
    data = given(rest, "data") or values.get("data", "digits")
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    preset = given(rest, "preset") or values.get("preset", "default")
    if "preset" in names and preset not in PRESETS:
        raise Mistake(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    known = for_command(command, data, preset if "preset" in names else "default")
    defaults = {name: value for name, value in known.items() if name in names}
    return parse(kind, command, rest, build(kind, {**defaults, **values}, file or command))


def resolve_again(kind: type[Options], command: str, stored: dict[str, Any], arguments: Sequence[str]) -> Options:
    """A run's own configuration, with the few flags that may be given together with --resume."""
    for argument in arguments:
        name = flag_name(argument)
        if name is not None and name.removeprefix("no_") not in WITH_RESUME:
            raise Mistake(
                f"--resume goes on with the run's own configuration: leave out {argument.partition('=')[0]}, "
                "or start a new run with --config RUN/config.json."
            )
    values = {name: value for name, value in stored.items() if name != "command"}
    return parse(kind, command, arguments, build(kind, values, "the run's config.json"))


def take(arguments: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of ``flag`` (``--flag VALUE`` or ``--flag=VALUE``) and the arguments without it."""
    rest: list[str] = []
    value: str | None = None
    places = iter(arguments)
    for argument in places:
        if argument == flag:
            value = next(places, None)
            if value is None or value.startswith("--"):
                raise Mistake(f"{flag} needs a value.")
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return value, rest


def given(arguments: Sequence[str], name: str) -> str | None:
    """The value of one flag, without taking it."""
    return take(arguments, f"--{name}")[0]


def flag_name(argument: str) -> str | None:
    """``--val-fraction=0.2`` is the field ``val_fraction``."""
    if not argument.startswith("--"):
        return None
    return argument[2:].partition("=")[0].replace("-", "_")


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
    return {name: value for name, value in document.items() if name not in NOT_FROM_FILE}


def build(kind: type[Options], values: dict[str, Any], where: str) -> Options:
    """An options object from plain values, each checked against its field's type.

    Raises:
        Mistake: a name that is no option, a value of another type.
    """
    types = get_type_hints(kind)
    for name, value in values.items():
        if name not in types:
            raise Mistake(f"{where}: {name!r} is no option; the options are {', '.join(types)}.")
        if not _fits(value, types[name]):
            raise Mistake(f"{where}: {name} must be {_named(types[name])}, got {value!r}.")
    return kind(**{name: _as_float(value, types[name]) for name, value in values.items()})


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value from JSON is of a field's type: ``int | None``, ``Literal["ce", "kl"]``, ..."""
    if get_origin(expected) is Literal:
        return value in get_args(expected)
    if get_args(expected):
        return any(_fits(value, part) for part in get_args(expected))
    return type(value) in ((int, float) if expected is float else (expected,))


def _named(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else str(expected).replace("typing.", "")


def _as_float(value: Any, expected: Any) -> Any:
    return float(value) if type(value) is int and float in (expected, *get_args(expected)) else value


def gist(said: str) -> str:
    """The first paragraph of a framed message, as one line that ends with a full stop."""
    words: list[str] = []
    for line in said.splitlines():
        text = line.strip("│╭╮╰╯ ").strip()
        if line.startswith(("╭", "╰")) or not text:
            if words and not line.startswith("╭"):
                break
            continue
        if set(text) <= {"─"}:
            break
        words.append(text)
    text = " ".join(words) or "the options cannot be read"
    return text if text.endswith(".") else f"{text}."
